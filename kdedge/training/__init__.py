"""Training: modules for the commands, and packages that they share.

* `distill.distill_student`: the command.
* `teacher`, `student`: the jobs of a teacher or a baseline, and of a student.
* `teacher_check`: whether zero-shot CLIP or a ridge regression is a better teacher.
* `file_teacher`: a teacher that is a file of class probabilities.
* `run_job.run_job`: trains one job in one run folder, new or resumed.
* `job.Job`: inputs of one run's training, and the key that identifies the run.
* `closed_form`: fits a job's method in closed form. `evaluate_job`: measures a trained run.
* `loop/`: the training loop, its steps, optimizers, checkpoints and logs.
* `output_store/`: outputs of a frozen model for images, stored on disk.
* `preflight.check`: checks a recipe up to its first training steps, without making a run.
"""
