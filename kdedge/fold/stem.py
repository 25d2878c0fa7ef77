"""The first convolution on raw pixels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from kdedge.runtime.artifact import Pixels
from kdedge.runtime.preprocess import Preprocess


def fold_pixels(
    conv: nn.Conv2d, preprocess: Preprocess, pixels: Pixels
) -> tuple[nn.Conv2d, Tensor]:
    """A convolution without padding on raw pixels.

    Returns:
        The convolution, without its own bias, and the bias [D], float64, that replaces the mean.
    """
    weight = conv.weight.double()  # [D, 3, P, P]
    mean, std = pixel_statistics(preprocess, "float")
    _, unit_std = pixel_statistics(preprocess, pixels)
    folded = copy.deepcopy(conv)
    folded.weight.copy_(weight / unit_std)
    return folded, -(weight * mean / std).sum(dim=(1, 2, 3))


def pixel_statistics(preprocess: Preprocess, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of raw pixels, each [3, 1, 1], float64."""
    unit = 255.0 if pixels == "uint8" else 1.0
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    return mean * unit, std * unit
