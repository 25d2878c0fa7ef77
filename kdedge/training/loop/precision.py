"""Number formats of the forward pass, and loss scaling for fp16."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from kdedge.config.optim_spec import PrecisionName
from kdedge.errors import SetupError

_PUBLISHED_IN_HALF = re.compile(
    r"(^|\.)(context|contexts|attribute_context)$|^projector\.linear|^meta_net\.|^couplings\.0\."
)
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp16-unscaled": torch.float16}


class Precision:
    """Runs forward and backward passes in fp32, bf16 or fp16.

    Trained tensors stay float32 in all three, so that small updates are not lost. fp16 scales the
    loss (Micikevicius et al. 2018, arXiv:1710.03740) and skips steps whose gradients overflow.

    fp16-unscaled does what the reference code of the prompt-learning papers does: it does not scale
    the loss. Parameters and momentum that this code keeps in half precision are rounded to half
    precision after every step.

    Args:
        name: format of matrix products and convolutions.
        device: device of the model.
        module: holds the trained parameters; fp16-unscaled rounds them before the first step.

    Raises:
        SetupError: this device does not compute in that format.
    """

    def __init__(
        self, name: PrecisionName, device: torch.device, module: nn.Module | None = None
    ) -> None:
        self._dtype = _DTYPES.get(name)
        self._device = device
        if self._dtype is not None:
            _check_support(name, self._dtype, device)
        self._scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        is_rounded = name == "fp16-unscaled"
        self._rounded = published_in_half(module) if is_rounded and module is not None else []
        _round(self._rounded)

    def autocast(self) -> torch.autocast:
        """Context manager for the forward pass and the loss."""
        return torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype is not None)

    @property
    def is_scaled(self) -> bool:
        """Whether gradients that overflow are expected, and skip a step."""
        return self._scaler.is_enabled()

    def backward(self, loss: Tensor) -> None:
        """Computes gradients of a float32 scalar, which fp16 scales first."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def clip(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        *,
        max_norm: float | None,
    ) -> Tensor:
        """Unscales the gradients, clips their global norm, and returns the norm before clipping.

        Args:
            optimizer: holds the parameters.
            parameters: the trained parameters.
            max_norm: upper limit of the L2 norm over all gradients; None does not clip.
        """
        self._scaler.unscale_(optimizer)
        return nn.utils.clip_grad_norm_(parameters, float("inf") if max_norm is None else max_norm)

    def step(self, optimizer: torch.optim.Optimizer, *, is_finite: bool) -> None:
        """Takes the optimizer's step; fp16 skips it if a gradient is not finite.

        Args:
            optimizer: holds the parameters.
            is_finite: whether the norm that `clip` returned is; the scaler's own step would wait
                for the GPU a second time to learn that.
        """
        if is_finite or not self.is_scaled:
            optimizer.step()
        self._scaler.update()
        _round(self._rounded)
        for parameter in self._rounded:
            state = optimizer.state.get(parameter, {})
            _round(x for x in state.values() if x is not None and x.shape == parameter.shape)

    def state_dict(self) -> dict[str, Any]:
        """The loss scale and its growth counter; empty if the loss is not scaled."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state returned by `state_dict`.

        Raises:
            ValueError: its scale is not above 0.
        """
        if self.is_scaled:
            if not 0 < state["scale"] < math.inf:
                raise ValueError(f"the loss scale is {state['scale']}")
            self._scaler.load_state_dict(state)


def published_in_half(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that the papers' code keeps in half precision.

    These are the contexts of the first text layer, the linear layers of PromptKD's projector and of
    CoCoOp's meta-net, and MaPLe's first coupling. All other parameters are float32 there, too.
    """
    return [p for name, p in module.named_parameters() if _PUBLISHED_IN_HALF.search(name)]


@torch.no_grad()
def _round(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        tensor.copy_(tensor.half())


def _check_support(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Runs one small matrix product, the only check that works for every torch and device."""
    try:
        with warnings.catch_warnings():
            # torch warns and continues in float32 if the device does not support the format
            warnings.simplefilter("error")
            with torch.autocast(device.type, dtype=dtype):
                ones = torch.ones(2, 2, device=device)
                is_supported = (ones @ ones).dtype == dtype
        if device.type == "cuda" and dtype is torch.bfloat16:
            # Older GPUs emulate it, slower than float32
            is_supported = is_supported and torch.cuda.get_device_capability(device) >= (8, 0)
    except (RuntimeError, UserWarning) as error:
        raise _unsupported(name, device) from error
    if not is_supported:
        raise _unsupported(name, device)


def _unsupported(name: str, device: torch.device) -> SetupError:
    return SetupError(
        f"optim.precision is {name}, which torch {torch.__version__} does not support on"
        f" {device}.\n"
        "  Set optim.precision: fp32."
    )
