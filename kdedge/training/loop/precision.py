"""Number formats of the forward pass, and loss scaling for fp16."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdedge.config.optim_spec import TrainingPrecision
from kdedge.errors import SetupError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp16-unscaled": torch.float16}
# Loss scale of the first step, and steps without overflow after which it doubles, as in torch
_FIRST_SCALE = 2.0**16
_GROWTH_INTERVAL = 2000


class MixedPrecision:
    """Runs forward and backward passes in fp32, bf16 or fp16.

    Trained tensors stay float32 in all three, so that small updates are not lost. fp16 scales the
    loss (Micikevicius et al. 2018, arXiv:1710.03740), skips steps whose gradients overflow, and
    halves the scale after them. torch's scaler keeps its scale on the device; here it is on the
    host, which reads the gradients' norm in any case.

    fp16-unscaled does not scale the loss, like the reference code of the prompt-learning papers.
    Parameters and momentum that the reference code keeps in half precision are rounded to half
    precision after every step.

    Args:
        name: format of matrix products and convolutions.
        device: device of the model.
        half_parameters: what fp16-unscaled rounds to half precision, before the first step and
            after each one.

    Raises:
        SetupError: this device does not support the format.
    """

    def __init__(
        self,
        name: TrainingPrecision,
        device: torch.device,
        half_parameters: Sequence[nn.Parameter] = (),
    ) -> None:
        self._dtype = _DTYPES.get(name)
        self._device = device
        if name == "bf16" and device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < (8, 0):  # older GPUs only emulate bf16, slower than float32
                raise SetupError(
                    f"optim.precision is bf16, which {device} does not compute.\n"
                    "  Set optim.precision: fp32."
                )
        self._is_scaled = name == "fp16"
        self._scale = _FIRST_SCALE if self._is_scaled else 1.0
        self._n_finite = 0
        self._rounded = half_parameters if name == "fp16-unscaled" else ()
        _round(self._rounded)

    def autocast(self) -> torch.autocast:
        """Context manager for the forward pass and the loss."""
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    @property
    def may_overflow(self) -> bool:
        """Whether a step whose gradient overflows is skipped, since a smaller scale may help."""
        return self._scale > 1

    def backward(self, loss: Tensor) -> None:
        """Computes the gradients of a float32 scalar, which is scaled first for fp16."""
        (loss * self._scale if self._is_scaled else loss).backward()  # type: ignore[no-untyped-call]

    def clip(self, parameters: Collection[nn.Parameter], *, max_norm: float | None) -> Tensor:
        """Unscales the gradients, clips their global norm, and returns the norm before clipping.

        Args:
            parameters: the trained parameters.
            max_norm: upper limit of the L2 norm over all gradients; None for no clipping.
        """
        if self._is_scaled:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / self._scale)
        return nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)

    def step(self, optimizer: torch.optim.Optimizer, *, is_finite: bool) -> None:
        """Takes the optimizer's step; fp16 skips it if the gradients' norm is not finite.

        Args:
            optimizer: the optimizer of the parameters.
            is_finite: whether the norm that `clip` returned is finite.
        """
        self._n_finite = self._n_finite + 1 if is_finite else 0
        if not is_finite:
            self._scale /= 2
            return
        optimizer.step()
        if self._is_scaled and self._n_finite % _GROWTH_INTERVAL == 0:
            self._scale *= 2
        _round(self._rounded)
        for parameter in self._rounded:
            state = optimizer.state.get(parameter, {})
            _round(x for x in state.values() if x is not None and x.shape == parameter.shape)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and the steps since it was halved; empty if the loss is not scaled."""
        return {"scale": self._scale, "n_finite": self._n_finite} if self._is_scaled else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state returned by `state_dict`."""
        if self._is_scaled:
            self._scale = float(state["scale"])
            self._n_finite = int(state["n_finite"])


@torch.no_grad()
def _round(tensors: Iterable[Tensor]) -> None:
    """Rounds float32 tensors to values of half precision, in place."""
    for tensor in tensors:
        tensor.copy_(tensor.half())
