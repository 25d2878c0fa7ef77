"""What trains: one file a verb, and rooms for what verbs share.

* `teach.teach`, `distill.distill`, `baseline.train_baseline`, `label_pool.label_pool`: the verbs.
* `run_job.run_job`: one job to one run folder, new or resumed.
* `job/`: what one run trains, and the key that finds it again.
* `loop/`: the epoch loop and what a step needs.
* `teacher_store/`: teacher features, kept on disk.
* `pseudo_labels/`: pseudo-labels and the rounds of training on them.
* `preflight.check`: a recipe's run up to its first steps, without a run.
"""
