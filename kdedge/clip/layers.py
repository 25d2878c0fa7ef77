"""The layers of any image encoder, counted from its output."""

from __future__ import annotations

import re

from torch import nn

_LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")
"""The path up to the first index: transformer.resblocks.3, layer2.0, trunk.blocks.11."""

_OUTPUT = "proj"
"""CLIP's ViT: its projection runs last, but is its first parameter."""


def layers_above(visual: nn.Module) -> dict[str, int]:
    """Name of a parameter -> number of the encoder's layers after it; 0 after the last layer.

    A layer is an element of the encoder's outermost lists of modules: a block of a ViT, a residual
    block of a ResNet, a stage of some other networks. Everything before the first layer, such as
    the patch convolution, is one more layer. Layers are counted in the order of their definition,
    which is the order of execution in open_clip's and timm's encoders.
    """
    layers, before = [""], {}
    for name, _ in visual.named_parameters():
        match = _LAYER.match(name)
        if match is not None and match.group() not in layers:
            layers.append(match.group())
        before[name] = len(layers) - 1 if match is None else layers.index(match.group())
    n_layers, is_after = len(layers), False
    above = {}
    for name, index in before.items():
        is_after = is_after or index == n_layers - 1
        is_output = name == _OUTPUT or (is_after and _LAYER.match(name) is None)
        above[name] = 0 if is_output else n_layers - index
    return above
