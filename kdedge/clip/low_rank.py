"""Low-rank changes of an image encoder's linear layers, merged into their weights after training.

Source: LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1): W + (alpha / r) B A, with W frozen.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.architecture import why_no_prompts
from kdedge.clip.image_backbone import AnyBackbone
from kdedge.errors import RecipeError

Projection = Literal["q", "k", "v", "out", "mlp"]

BLOCKS = "transformer.resblocks."
"""Prefix of the names of the blocks' layers in CLIP's ViT."""

_LAYERS: dict[Projection, tuple[tuple[str, str], ...]] = {
    "q": (("attn", "q"),),
    "k": (("attn", "k"),),
    "v": (("attn", "v"),),
    "out": (("attn", "out"),),
    "mlp": (("mlp", "c_fc"), ("mlp", "c_proj")),
}


class LowRankLinear(nn.Module):
    """A linear layer with a low-rank change: x W^T + b + (alpha / r) x A^T B^T.

    In evaluation mode the change is merged into a copy of W, so that the layer costs no more than
    the plain one.

    Args:
        linear: frozen and shared; it is not in this module's state dict.
        rank: r.
        alpha: the change's factor is alpha / r.
        generator: on the CPU; draws A from N(0, 1 / D_in). B is zero, so training starts from W.

    Attributes:
        a: [r, D_in].
        b: [D_out, r].
    """

    def __init__(
        self, linear: nn.Linear, *, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        n_out, n_in = linear.weight.shape
        drawn = torch.randn(rank, n_in, generator=generator) * n_in**-0.5
        self.a = nn.Parameter(drawn.to(linear.weight.device))
        self.b = nn.Parameter(torch.zeros(n_out, rank, device=linear.weight.device))
        self._factor = alpha / rank
        self._frozen = [linear]  # in a list, as a module's own modules are in its state dict
        self._merged: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D_in] -> [..., D_out]."""
        (linear,) = self._frozen
        if self._merged is not None:
            return F.linear(tokens, self._merged, linear.bias)
        change = F.linear(F.linear(tokens, self.a), self.b)
        result: Tensor = linear(tokens) + self._factor * change
        return result

    def train(self, mode: bool = True) -> LowRankLinear:
        """Merges for evaluation mode, and drops the merged weight for training mode."""
        super().train(mode)
        self._merged = None if mode else self.merged_weight()
        return self

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """[D_out, D_in]: W + (alpha / r) B A, summed in float64 and rounded once to W's dtype."""
        weight = self._frozen[0].weight
        change = self._factor * (self.b.double() @ self.a.double())
        return (weight.double() + change).to(weight.dtype)

    def as_linear(self) -> nn.Linear:
        """A plain, frozen layer with the merged weight."""
        weight, bias = self.merged_weight(), self._frozen[0].bias
        with torch.device("meta"):
            linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), bias
        return linear


class LowRankChanges(nn.ModuleDict):
    """The changed layers of an image encoder, with their names in its blocks."""

    def layers(self) -> dict[str, LowRankLinear]:
        """Each changed layer by its name in the encoder."""
        return {
            f"{BLOCKS}{name}": layer
            for name, layer in self.named_modules()
            if isinstance(layer, LowRankLinear)
        }


def make_low_rank_changes(
    backbone: AnyBackbone,
    *,
    rank: int,
    alpha: float,
    projections: Sequence[Projection],
    blocks: Sequence[int] | None,
    generator: torch.Generator,
) -> LowRankChanges:
    """Draws the changes of some layers in some blocks of CLIP's ViT.

    Args:
        backbone: frozen.
        rank: r.
        alpha: the change's factor is alpha / r.
        projections: which layers of a block.
        blocks: which blocks, from 0; None for all.
        generator: on the CPU; draws in the order of blocks and layers.

    Raises:
        RecipeError: the image encoder is not CLIP's ViT, a block does not exist, or r is larger
            than a layer's inputs or outputs.
    """
    visual = backbone.visual
    why = why_no_prompts(visual)
    if why is not None:
        raise RecipeError(
            f"Low-rank changes need the blocks of CLIP's ViT, but the image encoder of"
            f" {backbone.name} {why}.\n  Use tune: full."
        )
    assert isinstance(visual, VisionTransformer)
    n_blocks = len(visual.transformer.resblocks)
    chosen = range(n_blocks) if blocks is None else sorted(blocks)
    if chosen[-1] >= n_blocks:
        raise RecipeError(
            f"lora.blocks has block {chosen[-1]}, but the image encoder of {backbone.name} has"
            f" the blocks 0 to {n_blocks - 1}.\n  Remove it."
        )
    changes = LowRankChanges()
    for index in chosen:
        changes[str(index)] = parts = nn.ModuleDict()
        for part, name in (path for key in projections for path in _LAYERS[key]):
            linear = visual.transformer.resblocks[index].get_submodule(f"{part}.{name}")
            _check_rank(rank, linear.weight, f"{part}.{name} of {backbone.name}")
            layer = LowRankLinear(linear, rank=rank, alpha=alpha, generator=generator)
            if part not in parts:
                parts[part] = nn.ModuleDict()
            parts[part].add_module(name, layer)
    return changes


def _check_rank(rank: int, weight: Tensor, layer: str) -> None:
    largest = min(weight.shape)
    if rank > largest:
        raise RecipeError(
            f"lora.rank is {rank}, but {layer} has {weight.shape[1]} inputs and"
            f" {weight.shape[0]} outputs, so that the rank of its change is at most {largest}.\n"
            f"  Set lora.rank to {largest} or less; 2 to 16 is usual."
        )


def with_layers(visual: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The same encoder with some modules replaced; it shares the tensors of all other modules."""
    tensors = chain(visual.parameters(), visual.buffers())
    encoder = copy.deepcopy(visual, {id(tensor): tensor for tensor in tensors})
    for name, layer in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(encoder.get_submodule(parent), child, layer)
    return encoder


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
