"""One training step: forward pass, backward pass, gradient clipping, optimizer step.

If memory runs out, the step is repeated with half as many images at a time in the image encoder,
and all later steps use this number. Gradients are still of the whole batch (see
`methods.supervised.encode_images`). Several processes do not adapt the number; for them,
`optim.micro_batch` is fixed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdedge.config.optim_spec import OptimSettings
from kdedge.distributed import ProcessGroup
from kdedge.errors import DivergedError, RecipeError, is_out_of_memory
from kdedge.loading.batch import Batch
from kdedge.messages import some_of
from kdedge.methods.base import BaseMethod, StepOutput
from kdedge.training.loop.checkpoint import capture_rng, restore_rng
from kdedge.training.loop.optim import check_fits, lr_factors, make_optimizer
from kdedge.training.loop.precision import MixedPrecision

log = logging.getLogger(__name__)


class Stepper:
    """Takes a method's training steps, alone or together with other processes.

    Attributes:
        parameters: the trained parameters, by name.
        optimizer: their optimizer.
        precision: number format of the forward pass.
        micro_batch: images per pass of the image encoder; None for the whole batch.
    """

    def __init__(
        self, method: BaseMethod, settings: OptimSettings, device: torch.device, group: ProcessGroup
    ) -> None:
        check_fits(method, settings)
        self.parameters = method.trainable_parameters()
        self.optimizer = make_optimizer(
            self.parameters.values(), settings, lr_factors(method, settings)
        )
        self.precision = MixedPrecision(settings.precision, device, method.half_parameters())
        self.micro_batch = None if settings.micro_batch == "auto" else settings.micro_batch
        self._method = method
        self._settings = settings
        self._device = device
        self._group = group
        is_alone = settings.micro_batch == "auto" and group.world_size == 1
        self._can_halve = is_alone and method.can_split_batches
        is_split = group.world_size > 1 or self.micro_batch is not None
        if is_split and not method.can_split_batches:
            raise RecipeError(
                "This image encoder is trained with batch norm or dropout, which need whole"
                " batches: neither optim.micro_batch nor several processes can split a batch.\n"
                "  Use neither of the two, set tune: prompts, or choose an encoder without batch"
                " norm and dropout."
            )

    def take(self, batch: Batch, *, lr: float, place: str) -> tuple[float, dict[str, Tensor]]:
        """Takes one step.

        Args:
            batch: this process's shard of the batch.
            lr: the step's learning rate.
            place: position in training, for a message.

        Returns:
            The loss of the whole batch, and the method's own metrics and `grad_norm` as tensors,
            whose values may still be computed on the device.

        Raises:
            DivergedError: the loss or a gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        output = self._gradients(batch)
        norm = self.precision.clip(self.parameters.values(), max_norm=self._settings.clip_grad_norm)
        # Waits for the GPU, once per step
        loss, length = torch.stack([output.loss.detach().float(), norm.float()]).tolist()
        if not math.isfinite(loss):
            raise diverged(f"The loss is {loss}", place, batch.all_keys, self._settings)
        if not self.precision.may_overflow and not math.isfinite(length):
            what = f"The gradient's norm is {length}"
            raise diverged(what, place, batch.all_keys, self._settings)
        self.precision.step(self.optimizer, is_finite=math.isfinite(length))
        return loss, {**output.scalars, "grad_norm": norm}

    def _gradients(self, batch: Batch) -> StepOutput:
        """Runs forward and backward pass, with as many images at a time as fit into memory."""
        while True:
            try:
                with self._restored_on_error() if self._can_halve else contextlib.nullcontext():
                    return self._passes(batch.to(self._device, micro_batch=self.micro_batch))
            except (RuntimeError, MemoryError) as error:
                micro_batch = self._smaller_micro_batch(batch, error)
            # Outside of `except`, since tensors of the failed pass are only freed with the error
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batch = micro_batch

    def _passes(self, batch: Batch) -> StepOutput:
        """Runs the forward and the backward pass."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            output: StepOutput = self._method.training_step(batch)
        self.precision.backward(output.loss)
        self._group.all_reduce_mean(
            [p.grad for p in self.parameters.values() if p.grad is not None]
        )
        return output

    @contextlib.contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Context that restores random generators and buffers if an error ends it."""
        rng = capture_rng(self._device)
        buffers = [(buffer, buffer.clone()) for buffer in self._method.module.buffers()]
        try:
            yield
        except BaseException:
            restore_rng(rng, self._device)
            for buffer, before in buffers:
                buffer.copy_(before)
            raise

    def _smaller_micro_batch(self, batch: Batch, error: Exception) -> int:
        """Half the number of images at a time; raises the error if a smaller number cannot help."""
        largest = max(part.n_images for part in (batch, batch.labeled) if part is not None)
        now = min(self.micro_batch or largest, largest)
        if not is_out_of_memory(error) or now == 1 or not self._can_halve:
            raise error
        half = math.ceil(now / 2)
        log.warning(
            f"Memory ran out with {now} images at a time. Continuing with {half},"
            " which gives the same gradients but is slower.\n"
            f"  Set optim.micro_batch: {half} to start with that number."
        )
        return half


def diverged(what: str, place: str, keys: Sequence[str], settings: OptimSettings) -> DivergedError:
    """Makes the error for diverged training, with remedies that fit the settings.

    Args:
        what: start of the message, such as `The loss is nan`.
        place: position in training, such as `epoch 2, step 4 of 7`.
        keys: keys of the images of that step.
        settings: the run's optimization.
    """
    images = ", ".join(some_of(keys)) or "not named"
    remedies = [
        f"lower optim.lr (now {settings.lr:g})",
        *(["set optim.precision: fp32"] if settings.precision != "fp32" else []),
        *(["set optim.clip_grad_norm: 1.0"] if settings.clip_grad_norm is None else []),
    ]
    return DivergedError(
        f"{what}: training diverged at {place}. Images: {images}.\n"
        f"  Remedies: {', or '.join(remedies)}."
    )
