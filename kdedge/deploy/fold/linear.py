"""Linear layers with what follows or precedes them folded in.

Sums are computed in float64 and stored in float32.
"""

from __future__ import annotations

from torch import Tensor, nn


def make_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A float32 linear layer with these values."""
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return linear


def with_layer_scale(weight: Tensor, bias: Tensor, layer_scale: nn.Module) -> nn.Linear:
    """A linear layer and the layer scale after it."""
    gamma = getattr(layer_scale, "gamma", None)
    if gamma is None:
        return make_linear(weight, bias)
    gamma = gamma.double()
    return make_linear(gamma[:, None] * weight, gamma * bias)


def with_batch_norm(weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear and the batch norm after it, with its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shifted = gain * (bias - norm.running_mean.double())
    return gain[:, None] * weight, shifted + norm.bias.double()
