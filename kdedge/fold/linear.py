"""Folds the layer before or after a linear layer into its weight and bias.

Sums are computed in float64 and stored in float32.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdedge.clip.blocks import linear_of
from kdedge.runtime.artifact import PixelType
from kdedge.runtime.preprocess import Preprocess


def plain_weight_and_bias(layer: nn.Linear | nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight [D_out, ...] and bias [D_out] of a plain layer, float64; zeros if it has no bias."""
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    return layer.weight.double(), bias.double()


def make_linear(weight: Tensor, bias: Tensor, layer_type: type[nn.Linear] = nn.Linear) -> nn.Linear:
    """A float32 linear layer with this weight and bias."""
    return linear_of(weight.float(), bias.float(), layer_type)


def with_layer_scale(weight: Tensor, bias: Tensor, layer_scale: nn.Module) -> nn.Linear:
    """A linear layer that includes the layer scale after it."""
    gamma = getattr(layer_scale, "gamma", torch.ones(len(bias))).double()
    return make_linear(gamma[:, None] * weight, gamma * bias)


def with_batch_norm(
    weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that includes the batch norm after it (running statistics).

    Args:
        weight: [D_out, ...], of a linear layer or a convolution, float64.
        bias: [D_out], float64.
        norm: the batch norm; its own weight and bias may be None.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = 1 / (norm.running_var.double() + norm.eps).sqrt()
    if norm.weight is not None:
        gain = norm.weight.double() * gain
    shifted = gain * (bias - norm.running_mean.double())
    if norm.bias is not None:
        shifted = shifted + norm.bias.double()
    scaled = gain[:, None] * weight.flatten(1)  # each output channel by its gain
    return scaled.reshape(weight.shape), shifted


def fold_pixels(
    conv: nn.Conv2d, preprocess: Preprocess, pixels: PixelType
) -> tuple[nn.Conv2d, Tensor]:
    """Folds the normalization of pixels into a convolution without padding.

    Returns:
        The convolution on raw pixels, whose bias is unchanged, and the bias [D], float64, to add
        in place of the mean.
    """
    weight = conv.weight.double()  # [D, 3, P, P]
    mean, std = pixel_statistics(preprocess, "float")
    _, unit_std = pixel_statistics(preprocess, pixels)
    folded = copy.deepcopy(conv)
    folded.weight.copy_(weight / unit_std)
    return folded, -(weight * mean / std).sum(dim=(1, 2, 3))


def pixel_statistics(preprocess: Preprocess, pixels: PixelType) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of raw pixels, each [3, 1, 1], float64."""
    unit = 255.0 if pixels == "uint8" else 1.0
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    return mean * unit, std * unit
