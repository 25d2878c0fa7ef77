"""Tries a job's first steps, to find out whether and how fast it trains."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Generator, Iterator

import torch

from kdedge.data.batch import Batch, FeaturesOfViews
from kdedge.errors import DivergedError
from kdedge.methods.protocol import BaseMethod
from kdedge.training.job import Job
from kdedge.training.loop.checkpoint import rng_kept
from kdedge.training.loop.divergence import diverged
from kdedge.training.loop.optim import learning_rate
from kdedge.training.loop.step import Stepper


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
    times: list[float] = []
    with (
        rng_kept(job.device),
        _weights_kept(job.method),
        contextlib.closing(_first_batches(job, features)) as batches,
    ):
        trial = _Trial(job)
        began = ended = time.perf_counter()
        for batch in itertools.islice(batches, n_trials):
            trial.step(batch)
            before, ended = ended, time.perf_counter()
            times.append(ended - before)
            if len(times) > 1 and ended - began >= budget_s:
                break
    return times


def _first_batches(job: Job, features: FeaturesOfViews | None) -> Generator[Batch, None, None]:
    yield from job.batches(1, 0, features)


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


class _Trial:
    """The training loop's step without its log and checkpoints."""

    def __init__(self, job: Job) -> None:
        self._job, self._settings = job, job.choice.optim
        group = job.setup.workspace.group
        self._stepper = Stepper(job.method, self._settings, job.device, group)
        self._n_steps = job.n_steps
        self._n_done = 0
        job.method.module.train()

    def step(self, batch: Batch) -> None:
        """Takes one step and waits for the device to finish."""
        lr = learning_rate(self._settings, epoch=1, step=self._n_done, n_steps=self._n_steps)
        self._n_done += 1
        self._stepper.take(batch, lr=lr, diverged=lambda what: self._diverged(what, batch))
        if self._job.device.type == "cuda":
            torch.cuda.synchronize(self._job.device)

    def _diverged(self, what: str, batch: Batch) -> DivergedError:
        return diverged(
            what,
            place=f"trial step {self._n_done}",
            keys=batch.all_keys,
            settings=self._settings,
        )
