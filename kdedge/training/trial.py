"""Tries a job's first steps, to find out whether and how fast it trains."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from functools import partial

import torch

from kdedge.data.batch import FeaturesOfViews
from kdedge.methods.protocol import BaseMethod
from kdedge.training.job import Job
from kdedge.training.loop.checkpoint import rng_kept
from kdedge.training.loop.optim import learning_rate
from kdedge.training.loop.step import Stepper, diverged


def trial_steps(
    job: Job,
    n_trials: int,
    *,
    budget_s: float = math.inf,
    features: FeaturesOfViews | None = None,
) -> list[float]:
    """Takes a job's first steps as the training loop does, then undoes them.

    Args:
        job: its method and the global random generators are restored bit for bit.
        n_trials: maximum number of steps. The end of the first epoch stops them, too.
        budget_s: seconds after which no further step starts; at least two steps are taken. Leave
            it out if several processes train, as all must take the same number of steps.
        features: stored teacher features, so that the teacher is not run.

    Returns:
        Seconds of each step, with loading its images and the optimizer's update. The first step
        includes the start of the data workers. Empty if the method trains nothing.

    Raises:
        DivergedError: a loss or a gradient is not finite.
        KdedgeError: any other error that would stop the run in its first steps.
    """
    if not job.method.trainable_parameters():
        return []
    settings, group = job.choice.optim, job.setup.workspace.group
    times: list[float] = []
    with (
        rng_kept(job.device),
        _weights_kept(job.method),
        contextlib.closing(job.batches(1, 0, features)) as batches,
    ):
        stepper = Stepper(job.method, settings, job.device, group)
        job.method.module.train()
        began = ended = time.perf_counter()
        for step, batch in enumerate(itertools.islice(batches, n_trials)):
            lr = learning_rate(settings, epoch=1, step=step, n_steps=job.n_steps)
            place, keys = f"trial step {step + 1}", batch.all_keys
            failed = partial(diverged, place=place, keys=keys, settings=settings)
            stepper.take(batch, lr=lr, diverged=failed)
            if job.device.type == "cuda":
                torch.cuda.synchronize(job.device)
            before, ended = ended, time.perf_counter()
            times.append(ended - before)
            if len(times) > 1 and ended - began >= budget_s:
                break
    return times


@contextlib.contextmanager
def _weights_kept(method: BaseMethod) -> Iterator[None]:
    """Context manager that restores the method's tensors, gradients and mode on exit."""
    module = method.module
    before = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    was_training = module.training
    try:
        yield
    finally:
        module.load_state_dict(before)
        module.train(was_training)
        for parameter in method.trainable_parameters().values():
            parameter.grad = None
