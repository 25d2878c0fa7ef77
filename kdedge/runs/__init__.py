"""Runs: their folders, and the models in them.

`folder.RunFolder` is a folder, `find.find_run` finds one, `model.load_run` opens one as a model,
`weights` and `results` are what is stored, `evaluate.evaluate_run` measures one again.
"""
