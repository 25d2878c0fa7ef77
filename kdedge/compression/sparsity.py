"""2:4 sparsity: of each four weights along a layer's input, the two smaller ones are zero.

NVIDIA's GPUs since Ampere have products that skip these zeros. Source: Mishra et al.,
arXiv:2104.08378: zeros by magnitude (section 4.1), then training with the zeros fixed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

GROUP, N_KEPT = 4, 2

Layer = nn.Linear | nn.Conv2d


class Mask(nn.Module):
    """A parametrization of a weight: zero where the mask is.

    Args:
        mask: bool, of the weight's shape.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with its zeros."""
        return torch.where(self.mask, weight, 0)


def can_be_sparse(layer: Layer) -> bool:
    """Whether the layer's inputs make whole groups of four."""
    return layer.weight.shape[1] % GROUP == 0


def largest_of_four(weight: Tensor) -> Tensor:
    """Marks the two largest magnitudes of each four weights along the input.

    Args:
        weight: [D_out, D_in, ...], D_in divisible by four. Of equal weights, the first ones count
            as larger.

    Returns:
        bool, of the weight's shape.
    """
    groups = weight.detach().abs().movedim(1, -1)
    shape = groups.shape
    groups = groups.reshape(-1, GROUP)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :N_KEPT], True)
    return mask.reshape(shape).movedim(-1, 1).contiguous()


@torch.no_grad()
def zero_smallest(layer: Layer) -> Tensor:
    """Sets the two smaller weights of each group to zero; returns the mask of the others."""
    mask = largest_of_four(layer.weight)
    layer.weight.mul_(mask)
    return mask


def keep_zeros(layer: Layer, mask: Tensor) -> None:
    """Masks a layer's weight, after its other parametrizations.

    No gradient reaches the zeros, so that they stay zero in the trained tensor, too.
    """
    parametrize.register_parametrization(layer, "weight", Mask(mask))


def is_sparse(layer: Layer) -> bool:
    """Whether a layer's zeros are fixed."""
    found = getattr(layer, "parametrizations", None)
    return found is not None and any(isinstance(one, Mask) for one in found["weight"])
