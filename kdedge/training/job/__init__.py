"""What one run trains.

`job.Job` holds setup, data, held-out images and teacher. `key.job_key` hashes everything that
decides the trained weights. `trial.trial_steps` takes a job's first steps and undoes them.
"""
