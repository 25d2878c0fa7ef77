"""Layers without parametrizations, also in a copy of a model."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize


@torch.no_grad()
def make_plain(module: nn.Module, *, original: bool = False) -> None:
    """Makes a parametrized layer a plain one, in place; leaves any other module as it is.

    Not by torch's `remove_parametrizations`, which changes the layer's class: copies share it, and
    the model that was copied would lose its weight.

    Args:
        module: the layer.
        original: keep the values before the parametrizations, and not those that they give.
    """
    if not parametrize.is_parametrized(module):
        return
    parts = dict(module.parametrizations.items())  # type: ignore[operator, union-attr]
    values = {
        name: part.original if original else getattr(module, name) for name, part in parts.items()
    }
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value.detach(), value.requires_grad))
