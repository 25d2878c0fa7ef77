"""Fake quantization: a torch model that computes with INT8 values, as a graph with Q/DQ does.

A quantizer gives `levels * scale` with `levels = round(x / scale)`, half to even and saturated,
which is ONNX's `QuantizeLinear` followed by `DequantizeLinear` with zero point 0. Inputs have one
scale and levels -128 to 127. Weights have one scale per output channel and levels -127 to 127, so
that each level has a negative. Only linear layers and convolutions are quantized.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

HIGHEST = 127
INPUT_LOWEST = -128
WEIGHT_LOWEST = -127


@dataclass(frozen=True)
class QuantizedLayer:
    """The values of a quantized layer that a file stores.

    Attributes:
        input_scale: step of its input, exact in FP16.
        weight_scale: [D_out], steps of its weight, exact in FP16.
        levels: [D_out, D_in] or [D_out, D_in, H, W], int8, -127 to 127.
        center: [D_in], subtracted from its input first; None if nothing is. The layer's bias
            compensates for it.
    """

    input_scale: float
    weight_scale: npt.NDArray[np.float32]
    levels: npt.NDArray[np.int8]
    center: npt.NDArray[np.float32] | None = None


def fake_quantize(x: Tensor, scale: Tensor) -> Tensor:
    """Rounds values to multiples of a scale, and saturates them; see the module's docstring.

    Args:
        x: values of any shape.
        scale: positive; broadcast to x.
    """
    return (x / scale).round().clamp(INPUT_LOWEST, HIGHEST) * scale


def stored_weight(layer: QuantizedLayer) -> Tensor:
    """[D_out, ...]: the weight that a file stores, levels times scales."""
    levels = torch.from_numpy(layer.levels).float()
    scale = torch.from_numpy(layer.weight_scale)
    return levels * _for_channels(scale, levels)


def _for_channels(scale: Tensor, weight: Tensor) -> Tensor:
    """[D_out] -> [D_out, 1, ...], with as many dimensions as a weight [D_out, ...]."""
    ones = [1] * (weight.ndim - 1)
    return scale.reshape(-1, *ones)


def attach(model: nn.Module, layers: Mapping[str, QuantizedLayer]) -> None:
    """Quantizes layers of a model in place.

    Args:
        model: any model.
        layers: quantized layers, by the module's name in the model.
    """
    for name, layer in layers.items():
        module = model.get_submodule(name)
        module.weight = nn.Parameter(stored_weight(layer), requires_grad=False)
        module.register_forward_pre_hook(functools.partial(_quantize_input, layer))


def _quantize_input(
    layer: QuantizedLayer, module: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Forward pre-hook that centers and quantizes a layer's input."""
    x, *others = inputs
    if layer.center is not None:
        x = x - torch.from_numpy(layer.center)
    return (fake_quantize(x, torch.tensor(layer.input_scale)), *others)


def round_scale(scale: Tensor) -> Tensor:
    """The nearest positive scale that is exact in FP16, since files store scales in FP16."""
    smallest = torch.finfo(torch.float16).smallest_normal
    highest = torch.finfo(torch.float16).max
    return scale.clamp(smallest, highest).to(torch.float16).to(scale.dtype)


def weight_scale(weight: Tensor) -> Tensor:
    """[D_out, ...] -> [D_out]: the scale whose highest level is each channel's largest weight.

    A channel whose weights are all 0 gets the scale 1 / 127.
    """
    largest = weight.detach().flatten(1).abs().amax(dim=1)
    return round_scale(torch.where(largest > 0, largest, 1.0) / HIGHEST)


def weight_levels(weight: Tensor, scale: Tensor) -> Tensor:
    """[D_out, ...] and [D_out] -> the nearest levels, in int8."""
    ratio = weight / _for_channels(scale, weight)
    return ratio.round().clamp(WEIGHT_LOWEST, HIGHEST).to(torch.int8)
