"""Runs: their folders, and the models in them.

`folder.RunFolder` is a run's folder, `find.find_run` finds one, `model.load_run` opens one as a
model, `weights` and `results` store its tensors and accuracies, `evaluate.evaluate_run` measures
it.
"""
