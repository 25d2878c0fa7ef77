"""Low-rank changes of an image encoder's linear layers, merged into their weights after training.

Source: LoRA (Hu et al. 2021, arXiv:2106.09685, section 4.1): W + (alpha / r) B A, with W frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.blocks import linear_of
from kdedge.clip.layers import BLOCKS

Projection = Literal["q", "k", "v", "out", "mlp"]

# Names of the layers in a block
_LAYERS: dict[Projection, list[str]] = {
    "q": ["attn.q"],
    "k": ["attn.k"],
    "v": ["attn.v"],
    "out": ["attn.out"],
    "mlp": ["mlp.c_fc", "mlp.c_proj"],
}


class LowRankLinear(nn.Module):
    """A linear layer with a low-rank change: x W^T + b + (alpha / r) x A^T B^T.

    In evaluation mode the change is merged into a copy of W, so that the layer costs no more than
    the plain one.

    Args:
        linear: the layer to change, frozen and shared; it is not in this module's state dict.
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
        self._frozen = [linear]  # in a list, so that the state dict does not contain it
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
        return linear_of(self.merged_weight(), self._frozen[0].bias).requires_grad_(False)


class LowRankChanges(nn.ModuleDict):
    """The changed layers of an image encoder, with their names in its blocks."""

    def layers(self) -> dict[str, LowRankLinear]:
        """Each changed layer by its name in the encoder."""
        return {
            f"{BLOCKS}.{name}": layer
            for name, layer in self.named_modules()
            if isinstance(layer, LowRankLinear)
        }


def make_low_rank_changes(
    visual: nn.Module,
    *,
    rank: int,
    alpha: float,
    projections: Sequence[Projection],
    blocks: Sequence[int] | None,
    generator: torch.Generator,
) -> LowRankChanges:
    """Draws the changes of some layers in some blocks of CLIP's ViT.

    Args:
        visual: CLIP's ViT, frozen.
        rank: r.
        alpha: the change's factor is alpha / r.
        projections: which layers of a block.
        blocks: which blocks, from 0; None for all.
        generator: on the CPU; draws in the order of blocks and layers.
    """
    all_blocks = visual.get_submodule(BLOCKS)
    assert isinstance(all_blocks, nn.ModuleList)
    changes = LowRankChanges()
    paths: list[str] = []
    for key in projections:
        paths += _LAYERS[key]
    chosen = range(len(all_blocks)) if blocks is None else sorted(blocks)
    for index in chosen:
        parts = nn.ModuleDict()
        changes[str(index)] = parts
        for path in paths:
            linear = all_blocks[index].get_submodule(path)
            assert isinstance(linear, nn.Linear)
            layer = LowRankLinear(linear, rank=rank, alpha=alpha, generator=generator)
            part, name = path.split(".")
            if part not in parts:
                parts[part] = nn.ModuleDict()
            parts[part].add_module(name, layer)
    return changes
