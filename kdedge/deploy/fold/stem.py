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
    """The patch convolution on raw pixels, and the bias [D], float64, that replaces the mean."""
    weight = conv.weight.double()  # [D, 3, P, P]
    mean = torch.tensor(preprocess.mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(preprocess.std, dtype=torch.float64)[:, None, None]
    unit = 255.0 if pixels == "uint8" else 1.0
    folded = copy.deepcopy(conv)
    folded.weight.copy_(weight / (std * unit))
    return folded, -(weight * mean / std).sum(dim=(1, 2, 3))
