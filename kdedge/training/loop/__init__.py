"""The training loop.

`train.train` is the loop and `step.Stepper` takes one step. `checkpoint` saves and restores the
exact state. `optim` has optimizers and learning-rate schedules, `precision` number formats,
`selection` the choice of final weights, `loggers` metrics.
"""
