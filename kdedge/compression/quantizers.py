"""INT8 quantizers whose scales are learned with the weights (LSQ).

Esser et al., Learned Step Size Quantization, arXiv:1902.08153: the forward pass computes with INT8
values, gradients pass the rounding straight through, and reach the scales by equation 3 of the
paper (`quantization/fake.py`). Differs from the paper: a scale is `start * exp(GAIN * growth)`, so
that it stays positive and a step changes it by a share of itself, whatever its size; this takes the
place of the paper's gradient scale (section 2.2). Scales are those that FP16 represents, as files
store them, so that the file computes what was trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdedge.quantization.fake import (
    InputQuantizer,
    WeightQuantizer,
    quantize_layer,
    round_scale,
    weight_scale,
)

GAIN = 100.0
"""A step of AdamW moves `growth` by about the learning rate: a scale by 1 % at a rate of 1e-4."""


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        del ctx
        return round_scale(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        del ctx
        return grads[0]


def _learned(start: Tensor, growth: Tensor) -> Tensor:
    scale: Tensor = _Rounded.apply(start * torch.exp(GAIN * growth))  # type: ignore[no-untyped-call]
    return scale


class LearnedInputQuantizer(InputQuantizer):
    """Quantizes a layer's input, with one learned scale.

    Args:
        start: positive, its first scale.
    """

    start: Tensor

    def __init__(self, start: float) -> None:
        nn.Module.__init__(self)
        self.register_buffer("start", torch.tensor(start))
        self.growth = nn.Parameter(torch.zeros(()))

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """Scalar, positive."""
        return _learned(self.start, self.growth)


class LearnedWeightQuantizer(WeightQuantizer):
    """Quantizes a layer's weight, with one learned scale for each output channel.

    Args:
        start: [D_out], positive, its first scales.
    """

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer("start", start)
        self.growth = nn.Parameter(torch.zeros_like(start))
        self.levels = None

    @property
    def scale(self) -> Tensor:  # type: ignore[override]
        """[D_out], positive."""
        return _learned(self.start, self.growth)


def learn_int8(layer: nn.Linear | nn.Conv2d, input_scale: float) -> None:
    """Quantizes a layer in place; weight scales start where levels reach the largest weights.

    Args:
        layer: plain.
        input_scale: the first scale of its input.
    """
    weights = LearnedWeightQuantizer(weight_scale(layer.weight))
    quantize_layer(layer, LearnedInputQuantizer(input_scale), weights)
