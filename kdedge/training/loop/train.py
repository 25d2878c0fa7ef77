"""The training loop of all methods.

A run that is killed at any step and started again ends with the same weights, bit for bit on the
CPU, as one that never stopped: everything a step depends on is in the checkpoint, and batches are
a function of epoch and step.

Which weights stay at the end:

* selection `last`: the last epoch's, or the average over the epochs where the method averages;
* selection `validation`: the epoch with the highest validation score. Where the method averages,
  the average is one more candidate after the last epoch. A later candidate has to be strictly
  better. Buffers beside the averaged parameters are the last epoch's;
* selection `test`: as `validation`, where the caller's score is of test images.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from kdedge.config.recipe import OptimSettings
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import DataError, RecipeError
from kdedge.runs.folder import RunFolder
from kdedge.training.loop.selection import TrainingResult
from kdedge.training.loop.signals import StopSignals
from kdedge.training.loop.training import Batches, Training

if TYPE_CHECKING:
    from kdedge.methods.protocol import Method

_LOG = logging.getLogger(__name__)
_FREE_SETTINGS = {"n_workers", "checkpoint_every_s", "micro_batch"}


def decisive_settings(settings: OptimSettings) -> dict[str, Any]:
    """The settings that change what is learned, and not only how fast; plain values."""
    free = set(_FREE_SETTINGS)
    if settings.labeled_batch_size is None:  # as in version 0.1, whose keys had no such setting
        free.add("labeled_batch_size")
    return settings.model_dump(mode="json", exclude=free)


@dataclass(frozen=True)
class Epochs:
    """What the loop goes through.

    Attributes:
        batches: each call's batches must depend on epoch and step alone; the global random
            generators, which a method may draw from, must stay as they are.
        n_steps: steps of an epoch.
    """

    batches: Batches
    n_steps: int


def train(
    method: Method,
    epochs: Epochs,
    *,
    settings: OptimSettings,
    run: RunFolder,
    validate: Callable[[], float] | None,
    device: torch.device,
    identity: Mapping[str, Any] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainingResult:
    """Trains a method, or goes on where an interrupted run stopped.

    The module ends in evaluation mode with the weights that stay. A run whose training is complete
    is not trained again: those weights are loaded. Of several processes the first reads and writes
    the run's files; a run goes on with any number of them.

    Args:
        method: on `device`; its generators and initial values are the caller's to seed.
        epochs: the batches, of which each process gets its shard.
        settings: all concrete.
        run: its lock is held by the caller.
        validate: accuracy in percent of the method as it is now; called in evaluation mode and
            without a graph, in float32, by the first process alone. Needed unless selection is
            `last`.
        device: where batches go.
        identity: what else the result depends on, such as hashes and the method's settings; a run
            goes on only under the same. Plain values.
        group: those that train together; each is given its share of a batch.

    Raises:
        RecipeError: validation is asked for without images, or the run began under other settings.
        DivergedError: a loss, a gradient or a trained value is not finite.
        Interrupted: SIGINT or SIGTERM came, and the state is saved.
        ResourceError: the disk is full or the folder may not be written.
    """
    if settings.selection != "last" and validate is None:
        raise RecipeError(
            f"optim.selection is {settings.selection}, and there are no such images.\n"
            f"  Add data.{settings.selection}, or set optim.selection: last."
        )
    own = decisive_settings(settings)
    n_steps = epochs.n_steps
    training = Training(
        method,
        settings,
        n_steps,
        run,
        device,
        group,
        identity={**own, "steps": n_steps, **(identity or {})},
    )
    training.resume()
    if training.epoch > settings.epochs:
        _LOG.info("%s is trained already: nothing to do.", run.path)
        return training.keep()
    if group.on_rank0(lambda: run.is_finished):
        raise DataError(
            f"{run.path} is finished, and its last checkpoint is gone.\n"
            f"  Its weights are in {run.weights.name}; start a new run to train again."
        )
    with StopSignals() as stop, training.open_log() as log:
        training.save()
        while training.epoch <= settings.epochs:
            training.run_epoch(epochs.batches, stop=stop, log=log)
            training.close_epoch(validate, log=log)
            training.save()
            training.check_stop(stop)
    training.check_stop(stop)  # a signal may come while the log closes
    return training.keep()
