"""What one run trains.

`job.Job` is setup, data, held-out images and teacher; `key.job_key` hashes what decides its
weights; `trial.trial_steps` takes its first steps and undoes them.
"""
