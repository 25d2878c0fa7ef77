"""The training loop.

`train.train` is the loop and `step.Stepper` takes one step. `checkpoint` saves and restores the
state exactly. `optim` has optimizers and learning-rate schedules, `precision` the number formats,
`selection` the final weights, `loggers` the metrics.
"""
