"""The training loop of all methods.

A run that is killed at any step and resumed ends with the same weights, bit for bit on the CPU, as
an uninterrupted run: the checkpoint has everything on which a step depends, and batches are a
function of epoch and step.

The final weights:

* selection `last`: the last epoch's weights; if the method averages over epochs, the average;
* selection `validation`: the weights of the epoch with the highest validation score. If the method
  averages, the average is one more candidate after the last epoch. A later candidate must be
  strictly better. Buffers are not averaged; the average has the last epoch's buffers;
* selection `test`: as `validation`, but the caller measures the score on test images.

With `ema_decay`, the weights of an epoch are the moving average at its end. Training
continues from the weights that are not averaged.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any

import torch

from kdedge.config.optim_spec import OptimSettings
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import DataError, Interrupted, ResourceError
from kdedge.loading.batch import Batch
from kdedge.messages import option, same_call
from kdedge.methods.base import BaseMethod
from kdedge.runs.folder import TrainingFolder
from kdedge.runs.provenance import TrainingSummary
from kdedge.training.loop.checkpoint import (
    TrainingState,
    capture_rng,
    load_newest,
    restore_rng,
    rng_kept,
    save_checkpoint,
)
from kdedge.training.loop.loggers import MetricsLog
from kdedge.training.loop.optim import learning_rate
from kdedge.training.loop.selection import BestWeights, MovingAverage, ParameterAverage
from kdedge.training.loop.step import Stepper, diverged

log = logging.getLogger(__name__)

Batches = Callable[[int, int], Generator[Batch, None, None]]
"""(epoch from 1, step from 0) -> the batches from this step to the end of the last epoch."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Context in which the first SIGINT or SIGTERM only sets `received`, and a second one kills.

    The first signal restores the operating system's default handling, so that the second one ends
    the process even during a long computation. Outside the main thread, where Python allows no
    signal handlers, the context does nothing.

    Attributes:
        received: number of the received signal; None if there was none.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            # None: a handler that was not set from Python and cannot be restored
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)


class Training:
    """The state of a training, and its steps, epochs and checkpoints."""

    def __init__(
        self,
        method: BaseMethod,
        settings: OptimSettings,
        n_steps: int,
        run: TrainingFolder,
        device: torch.device,
        group: ProcessGroup,
    ) -> None:
        self.epoch = 1
        self.step = 0
        self._method = method
        self._settings = settings
        self._n_steps = n_steps
        self._run = run
        self._device = device
        self._group = group
        self._stepper = Stepper(method, settings, device, group)
        self._parameters = self._stepper.parameters
        weights = method.averaging_weights(settings.epochs)
        self._average = None if weights is None else ParameterAverage(weights)
        decay = settings.ema_decay
        self._moving = None if decay is None else MovingAverage(method.module, decay)
        self._best = BestWeights()
        parts: dict[str, Any] = {  # by field of `TrainingState`
            "module": method.module,
            "optimizer": self._stepper.optimizer,
            "scaler": self._stepper.precision,
            "best": self._best,
            "average": self._average,
            "moving_average": self._moving,
        }
        self._parts = {name: part for name, part in parts.items() if part is not None}
        self._loss_sum = self._final_loss = self._seconds_before = 0.0
        self._last_keys: tuple[str, ...] = ()
        self._n_metrics_bytes = 0
        self._newest = run.checkpoints  # then the newest checkpoint, on rank 0
        self.stop = StopSignals()
        self._metrics: MetricsLog | None = None  # only on rank 0
        self._began = self._saved = time.monotonic()

    @property
    def n_done(self) -> int:
        """Number of finished steps, over all epochs."""
        return (self.epoch - 1) * self._n_steps + self.step

    @contextlib.contextmanager
    def open_log(self) -> Iterator[None]:
        """Context in which rank 0 writes the run's metrics, from this position on."""
        if not self._group.is_rank0:
            yield
            return
        with MetricsLog(
            self._run.metrics,
            self._run.path,
            n_bytes=self._n_metrics_bytes,
            step=self.n_done,
            n_steps=self._settings.epochs * self._n_steps,
            what=f"training {self._run.role}",
        ) as self._metrics:
            yield

    def resume(self) -> None:
        """Loads the newest checkpoint, if there is one."""
        state = self._group.on_rank0(lambda: load_newest(self._run.checkpoints))
        if state is None:
            return
        try:
            self._restore(state)
        # Raised for a checkpoint of another version
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise DataError(
                f"The checkpoint in {self._run.checkpoints} does not fit this run: {error!r}.\n"
                "  Delete the newest one to resume from the one before it, or start a new run."
            ) from error
        log.info(f"Resuming at epoch {self.epoch}, step {self.step + 1}.")

    def _restore(self, state: TrainingState) -> None:
        """Restores the state of a checkpoint."""
        for name, part in self._parts.items():
            part.load_state_dict(getattr(state, name))
        self.epoch = state.epoch
        self.step = state.step
        record = state.record
        self._loss_sum = record["loss_sum"]
        self._final_loss = record["final_loss"]
        self._seconds_before = record["seconds"]
        self._n_metrics_bytes = record["metrics_bytes"]
        if self._settings.micro_batch == "auto":
            self._stepper.micro_batch = record["micro_batch"]
        restore_rng(state.rng, self._device)

    def save(self) -> None:
        """Writes a checkpoint of this position."""
        self._check_parameters()
        self._saved = time.monotonic()
        if not self._group.is_rank0:
            return
        state = TrainingState(
            epoch=self.epoch,
            step=self.step,
            **{name: part.state_dict() for name, part in self._parts.items()},
            rng=capture_rng(self._device),
            record={
                "loss_sum": self._loss_sum,
                "final_loss": self._final_loss,
                "seconds": self._seconds(),
                "micro_batch": self._stepper.micro_batch,
                "metrics_bytes": self._run.metrics.stat().st_size,
            },
        )
        self._newest = save_checkpoint(self._run.checkpoints, state)

    def run_epoch(self, batches: Iterator[Batch]) -> None:
        """Takes the remaining steps of this epoch."""
        self._method.module.train()
        try:
            while self.step < self._n_steps:
                self._take_step(next(batches))
                self.check_stop()
                is_due = time.monotonic() - self._saved >= self._settings.checkpoint_every_s
                if is_due and self.step < self._n_steps:
                    self.save()
        except (RuntimeError, ResourceError) as error:
            if self.stop.received is None or isinstance(error.__cause__, OSError):
                raise
            # The signal also ended the data workers, which torch may report in the middle of a
            # step, so no new checkpoint is saved
            raise self._interrupted(self.stop.received) from error

    def close_epoch(self, validate: Callable[[], float] | None) -> None:
        """Ends an epoch: averages, validates, and writes the epoch's line in the log."""
        self._check_parameters()
        self._final_loss = self._loss_sum / self._n_steps
        figures = {"loss": self._final_loss, "seconds": self._seconds()}
        if self._average is not None:
            self._average.add(self._parameters, epoch=self.epoch)
        if self._settings.selection != "last":
            assert validate is not None
            moving = self._moving
            module = self._method.module
            with moving.in_place_of(module) if moving else contextlib.nullcontext():
                figures["validation_percent"] = self._consider(validate, epoch=self.epoch)
            if self._average is not None and self.epoch == self._settings.epochs:
                # The average may stay in the module, since `finish` loads the best weights
                self._average.copy_to(self._parameters)
                figures["averaged_validation_percent"] = self._consider(validate, epoch=None)
        if self._metrics is not None:
            self._metrics.epoch(epoch=self.epoch, step=self.n_done, figures=figures)
        self.epoch = self.epoch + 1
        self.step = 0
        self._loss_sum = 0.0

    def check_stop(self) -> None:
        """Saves and ends the run if any process received a signal."""
        signum = self._group.all_reduce_max(self.stop.received or 0)
        if signum:
            self.save()
            raise self._interrupted(signum)

    def finish(self) -> TrainingSummary:
        """Loads the final weights into the module, after the last epoch; returns the summary."""
        kept = "last"
        if self._settings.selection != "last":
            self._best.copy_to(self._method.module)
            kept = "averaged" if self._best.epoch is None else "epoch"
        elif self._average is not None:
            self._average.copy_to(self._parameters)
            kept = "averaged"
        elif self._moving is not None:
            self._moving.copy_to(self._method.module)
            kept = "moving average"
        self._check_parameters()
        self._method.module.eval()
        return TrainingSummary(
            epochs=self._settings.epochs,
            steps=self._settings.epochs * self._n_steps,
            seconds=self._seconds(),
            final_loss=self._final_loss,
            kept=kept,
            best_epoch=self._best.epoch,
            validation_percent=self._best.score,
        )

    def _take_step(self, batch: Batch) -> None:
        """Takes one step and logs its metrics."""
        lr = learning_rate(self._settings, epoch=self.epoch)
        self._last_keys = batch.all_keys
        loss, scalars = self._stepper.take(batch, lr=lr, place=self._place(self.step + 1))
        self.step += 1
        if self._moving is not None:
            self._moving.update(self._method.module, step=self.n_done)
        self._loss_sum += loss
        if self._metrics is not None:
            self._metrics.step(
                epoch=self.epoch,
                step=self.n_done,
                figures={"lr": lr, "loss": loss, **scalars},
                n_images=batch.n_images,
                is_last=self.step == self._n_steps,
            )

    @torch.no_grad()
    def _consider(self, validate: Callable[[], float], *, epoch: int | None) -> float:
        """Validates the current weights; keeps a copy if they are the best so far."""
        module = self._method.module
        module.eval()
        with rng_kept(self._device):
            score = self._group.on_rank0(lambda: float(validate()))
        self._best.consider(module, score=score, epoch=epoch)
        return score

    def _check_parameters(self) -> None:
        """Checks that parameters are finite, so that no checkpoint holds unusable values."""
        finite = [parameter.detach().isfinite().all() for parameter in self._parameters.values()]
        for name, is_finite in zip(self._parameters, torch.stack(finite).tolist(), strict=True):
            if not is_finite:
                what = f"{name} is no longer finite"
                raise diverged(what, self._place(self.step), self._last_keys, self._settings)

    def _place(self, step: int) -> str:
        """The position in training, for messages."""
        return f"epoch {self.epoch}, step {step} of {self._n_steps}"

    def _interrupted(self, signum: int) -> Interrupted:
        return Interrupted(
            f"Interrupted at {self._place(self.step)}; the state is in {self._newest}.\n"
            f"  {same_call()} with {option('--resume', 'resume=True')} to go on from there.",
            signum=signum,
        )

    def _seconds(self) -> float:
        return self._seconds_before + time.monotonic() - self._began


def train(
    method: BaseMethod,
    batches: Batches,
    n_steps: int,
    *,
    settings: OptimSettings,
    run: TrainingFolder,
    validate: Callable[[], float] | None,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> TrainingSummary:
    """Trains a method, or resumes an interrupted run.

    The module ends in evaluation mode with the final weights. A run whose training is complete is
    not trained again: its final weights are loaded. Only rank 0 reads and writes the run's files.
    A run may be resumed with another number of processes, and with other settings that only affect
    speed; the caller finds it by a key of all other settings.

    Args:
        method: the method, on `device`; the caller seeds its generators and initial values.
        batches: yields batches that depend on epoch and step only; each process gets its shard. It
            must not draw from the global random generators, from which a method may draw.
        n_steps: steps per epoch.
        settings: optimizer settings without unset values.
        run: the run folder; the caller holds its lock.
        validate: returns the method's current accuracy in percent. Only rank 0 calls it, in
            evaluation mode, without gradients and in float32. Needed unless selection is `last`.
        device: device of the batches.
        group: the processes that train together; each gets its shard of a batch.

    Raises:
        DivergedError: a loss, a gradient or a trained value is not finite.
        Interrupted: SIGINT or SIGTERM arrived, and the state is saved.
        ResourceError: the disk is full or the folder is not writable.
    """
    training = Training(method, settings, n_steps, run, device, group)
    training.resume()
    if training.epoch > settings.epochs:
        log.info(f"{run.path} is already trained: nothing to do.")
        return training.finish()
    with training.stop, training.open_log():
        training.save()
        with contextlib.closing(batches(training.epoch, training.step)) as remaining:
            while training.epoch <= settings.epochs:
                training.run_epoch(remaining)
                training.close_epoch(validate)
                training.save()
                training.check_stop()
    training.check_stop()  # a signal may arrive while the log closes
    return training.finish()
