"""The training loop of all methods.

A run that is killed at any step and resumed ends with the same weights, bit for bit on the CPU, as
one that never stopped: everything a step depends on is in the checkpoint, and batches are a
function of epoch and step.

The final weights:

* selection `last`: the last epoch's, or the average over the epochs where the method averages;
* selection `validation`: the epoch with the highest validation score. Where the method averages,
  the average is one more candidate after the last epoch. A later candidate has to be strictly
  better. Buffers are not averaged; the average has those of the last epoch;
* selection `test`: as `validation`, but the caller's score is measured on test images.

With `ema_decay`, the weights of an epoch are those of the moving average at its end. Training
continues from the weights that are not averaged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from kdedge.config.recipe import OptimSettings
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import DataError, RecipeError
from kdedge.runs.folder import RunFolder
from kdedge.training.loop.optim import decisive_settings
from kdedge.training.loop.selection import TrainingResult
from kdedge.training.loop.signals import StopSignals
from kdedge.training.loop.training import Batches, Training

if TYPE_CHECKING:
    from kdedge.methods.protocol import BaseMethod

_LOG = logging.getLogger(__name__)


def train(
    method: BaseMethod,
    batches: Batches,
    n_steps: int,
    *,
    settings: OptimSettings,
    run: RunFolder,
    validate: Callable[[], float] | None,
    device: torch.device,
    identity: Mapping[str, Any] | None = None,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainingResult:
    """Trains a method, or resumes an interrupted run.

    The module ends in evaluation mode with the final weights. A run whose training is complete is
    not trained again: its final weights are loaded. Rank 0 alone reads and writes the run's files.
    A run may be resumed with another number of processes.

    Args:
        method: on `device`; the caller seeds its generators and initial values.
        batches: gives batches that depend on epoch and step alone; each process gets its shard. It
            must not draw from the global random generators, as a method may draw from them.
        n_steps: steps per epoch.
        settings: with every value set.
        run: the run folder; the caller holds its lock.
        validate: gives the method's current accuracy in percent. Called by rank 0 alone, in
            evaluation mode, without gradients and in float32. Needed unless selection is `last`.
        device: device of the batches.
        identity: what else the result depends on, such as hashes and the method's settings, as
            plain values. Resuming needs the same ones.
        group: the processes that train together; each gets its share of a batch.

    Raises:
        RecipeError: there are no images for validation, or the run was started with other settings.
        DivergedError: a loss, a gradient or a trained value is not finite.
        Interrupted: SIGINT or SIGTERM arrived, and the state is saved.
        ResourceError: the disk is full or the folder is not writable.
    """
    if settings.selection != "last" and validate is None:
        raise RecipeError(
            f"optim.selection is {settings.selection}, but the recipe has no {settings.selection}"
            " images.\n"
            f"  Add data.{settings.selection}, or set optim.selection: last."
        )
    own = decisive_settings(settings)
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
        _LOG.info("%s is already trained: nothing to do.", run.path)
        return training.keep()
    if group.on_rank0(lambda: run.is_finished):
        raise DataError(
            f"{run.path} is finished, but its last checkpoint is missing.\n"
            f"  Its weights are in {run.weights.name}; start a new run to train again."
        )
    with StopSignals() as stop, training.open_log() as log:
        training.save()
        while training.epoch <= settings.epochs:
            training.run_epoch(batches, stop=stop, log=log)
            training.close_epoch(validate, log=log)
            training.save()
            training.check_stop(stop)
    training.check_stop(stop)  # a signal may arrive while the log closes
    return training.keep()
