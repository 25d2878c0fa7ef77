"""Replaces layers of an image encoder, and counts the layers after each parameter."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from itertools import chain

from torch import nn

BLOCKS = "transformer.resblocks"
"""Name of the list of blocks in CLIP's ViT."""


def with_layers(visual: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """Copies an encoder with some modules replaced; the copy shares all other tensors."""
    tensors = chain(visual.parameters(), visual.buffers())
    encoder = copy.deepcopy(visual, {id(tensor): tensor for tensor in tensors})
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer)
    return encoder


def first_blocks(visual: nn.Module, depth: int | None) -> nn.Module:
    """CLIP's ViT with its first `depth` blocks; all tensors are shared. None: the encoder itself.

    `ln_post` and the projection, which were trained on the last block's output, follow the last
    block that is kept.
    """
    if depth is None:
        return visual
    blocks = visual.get_submodule(BLOCKS)
    assert isinstance(blocks, nn.ModuleList)
    return with_layers(visual, {BLOCKS: blocks[:depth]})


# The path up to the first index: transformer.resblocks.3, layer2.0, trunk.blocks.11
_LAYER = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)")

_OUTPUT = "proj"  # CLIP's ViT: its projection runs last, but is its first parameter


def layers_above(visual: nn.Module) -> dict[str, int]:
    """Name of a parameter -> number of the encoder's layers after it; 0 after the last layer.

    A layer is an element of the encoder's outermost lists of modules: a block of a ViT, a residual
    block of a ResNet, a stage of some other networks. Everything before the first layer, such as
    the patch convolution, is one more layer. Layers are counted in the order of their definition,
    which is the order of execution in open_clip's and timm's encoders.
    """
    layers = [""]
    layer_of = {}
    for name, _ in visual.named_parameters():
        match = _LAYER.match(name)
        layer = layers[-1] if match is None else match.group()
        if layer not in layers:
            layers.append(layer)
        layer_of[name] = layers.index(layer)
    n_layers = len(layers)
    in_last = False
    n_above = {}
    for name, index in layer_of.items():
        in_last = in_last or index == n_layers - 1
        is_output = name == _OUTPUT or (in_last and _LAYER.match(name) is None)
        n_above[name] = 0 if is_output else n_layers - index
    return n_above
