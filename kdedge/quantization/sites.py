"""Where a folded model is quantized, and statistics of its layers' inputs on calibration images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.errors import DataError

BATCH = 8
"""Images per call of a model."""

N_ROWS = 2048
"""Rows of a linear layer's input that are samples, spread over all images."""

_N_MAPS = 4  # images whose feature maps are samples for a convolution


@dataclass(frozen=True)
class Site:
    """Layers whose inputs can be scaled and shifted together, channel by channel.

    Attributes:
        layers: names of the layers.
        norm: name of the LayerNorm whose output only these layers read, or None.
        block: name of the folded block whose values the layer reads, weighted by attention, or
            None.
        activation: name of the activation function whose output only this layer reads, or None.
    """

    layers: tuple[str, ...]
    norm: str | None = None
    block: str | None = None
    activation: str | None = None

    @property
    def can_be_smoothed(self) -> bool:
        """Whether a LayerNorm or block before the layers can take over factors of channels."""
        return self.norm is not None or self.block is not None


@dataclass(frozen=True)
class InputStatistics:
    """Statistics of a layer's input on the calibration images.

    Attributes:
        sample: [R, D_in] of a linear layer, [B, C, H, W] of a convolution.
        low: [D_in] or [C], the smallest value of each channel over all images.
        high: [D_in] or [C], the largest value.
    """

    sample: Tensor
    low: Tensor
    high: Tensor

    @property
    def channel_max(self) -> Tensor:
        """[D_in] or [C], the largest magnitude of each channel over all images."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def divided(self, factor: Tensor) -> InputStatistics:
        """The statistics if the channels are divided by positive factors [D_in]."""
        return InputStatistics(self.sample / factor, self.low / factor, self.high / factor)

    def minus(self, center: Tensor) -> InputStatistics:
        """The statistics of a linear layer if [D_in] is subtracted from its input."""
        return InputStatistics(self.sample - center, self.low - center, self.high - center)


class FloatLinear(nn.Linear):
    """A linear layer that stays in float, such as a closed-form solution.

    Such a solution depends on small differences of features, and is too small to gain from INT8.
    """


def run_layer(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """A layer's output for an input, with another weight; [..., D_out], without bias.

    Args:
        layer: a linear layer or a convolution.
        x: see `InputStatistics.sample`.
        weight: of the same shape as the layer's.
    """
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight)
    assert isinstance(layer, nn.Conv2d)
    maps: Tensor = layer._conv_forward(x, weight, None)
    return maps.movedim(1, -1)


@torch.no_grad()
def observe_layers(
    model: nn.Module, names: Sequence[str], images: Tensor, advance: Callable[[int], object]
) -> dict[str, InputStatistics]:
    """Runs a model on images and returns statistics of its layers' inputs, by name.

    Args:
        model: the float model.
        names: names of the layers.
        images: [N, 3, S, S], as the model takes them.
        advance: called with the number of finished images.

    Raises:
        DataError: values are NaN or infinite.
    """
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    low: dict[str, Tensor] = {}
    high: dict[str, Tensor] = {}
    n_rows = max(1, math.ceil(N_ROWS * BATCH / len(images)))  # sampled per batch

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            is_linear = isinstance(module, nn.Linear)
            rows = x.reshape(-1, x.shape[-1]) if is_linear else x.movedim(1, -1).flatten(0, -2)
            low[name] = torch.minimum(low.get(name, rows[0]), rows.amin(dim=0))
            high[name] = torch.maximum(high.get(name, rows[0]), rows.amax(dim=0))
            if is_linear:
                step = max(1, len(rows) // n_rows)
                # Another first row in each batch, so that no token is always or never sampled
                first = len(samples[name]) % step
                samples[name].append(rows[first::step][:n_rows].clone())
            elif not samples[name]:
                samples[name].append(x[:_N_MAPS].clone())

        return record

    hooks = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            model(batch)
            advance(start + len(batch))
    finally:
        for handle in hooks:
            handle.remove()
    broken = [name for name in names if not (low[name] - high[name]).isfinite().all()]
    if broken:
        raise DataError(
            f"INT8: {broken[0]} reads NaN or infinity on the calibration images.\n"
            "  Check the images, and the student's weights: kdedge eval."
        )
    return {n: InputStatistics(torch.cat(samples[n]), low[n], high[n]) for n in names}
