"""Runs: their folders, and the models in them.

`folder.RunFolder` is a run's folder, `find.find_run` finds a run, `model.load_run` loads its model,
`measure` measures it, and `weights` and `results` store tensors and accuracies.
"""
