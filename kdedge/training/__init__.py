"""Training: one module per command, and packages that the commands share.

* `teach.teach`, `teach.train_baseline`, `distill.distill`, `label_pool.label_pool`: commands.
* `run_job.run_job`: trains one job in one run folder, new or resumed.
* `job.Job`: what one run trains, and the key by which the run is found again.
* `loop/`: the training loop and what a step needs.
* `teacher_store/`: teacher features, stored on disk.
* `pseudo_labels`: pseudo-labels and the rounds of training on them.
* `preflight.check`: checks a recipe up to its first training steps, without making a run.
"""
