"""The epoch loop.

`train.train` is the loop, `step.Stepper` takes a step, `checkpoint` saves and restores it exactly,
`optim` has optimizers and learning rates, `precision` the formats, `selection` the weights that
stay, `loggers` the metrics, `signals` the interruptions.
"""
