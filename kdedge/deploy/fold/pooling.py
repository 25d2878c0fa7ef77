"""Pooling by attention: one vector from all tokens of an image.

SigLIP's pooling (timm's `AttentionPoolLatent`) asks with learned queries that are the same for all
images: the product of query and key weights is one linear layer with one output per head and
query. CLIP's ResNets (`AttentionPool2d`) ask with the mean token; only its output is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from open_clip.modified_resnet import AttentionPool2d
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from kdedge.deploy.fold.linear import make_linear


def fold_pooling(module: nn.Module) -> nn.Module | None:
    """The folded form of a pooling by attention; None for any other module."""
    if isinstance(module, AttentionPool2d):
        return FoldedMeanPool(module)
    if isinstance(module, AttentionPoolLatent) and isinstance(module.k_norm, nn.Identity):
        return FoldedLatentPool(module)
    return None


class FoldedLatentPool(nn.Module):
    """Attention of constant queries.

    Args:
        pool: its queries are computed once.
    """

    def __init__(self, pool: AttentionPoolLatent) -> None:
        super().__init__()
        self.n_heads, self.n_queries, self.pool = pool.num_heads, pool.latent_len, pool.pool
        queries = pool.q(pool.latent[0]).double().unflatten(-1, (self.n_heads, -1))  # [Q, heads, d]
        queries = pool.q_norm(queries.float()).double() * pool.scale
        weight, bias = _weight_and_bias(pool.kv)
        (key, value), (key_bias, value_bias) = weight.chunk(2), bias.chunk(2)
        scores = torch.einsum("qhd,hdi->hqi", queries, key.unflatten(0, (self.n_heads, -1)))
        shift = torch.einsum("qhd,hd->hq", queries, key_bias.unflatten(0, (self.n_heads, -1)))
        self.scores = make_linear(scores.flatten(0, 1), shift.flatten())
        self.value = make_linear(value, value_bias)
        self.register_buffer("positions", pool.pos_embed)
        self.proj, self.norm, self.mlp = pool.proj, pool.norm, pool.mlp

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        if self.positions is not None:
            tokens = tokens + self.positions
        weights = self.scores(tokens).transpose(1, 2).softmax(dim=-1)  # [B, heads * Q, N]
        weights = weights.unflatten(1, (self.n_heads, self.n_queries))
        values = self.value(tokens).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        attended = (weights @ values).transpose(1, 2).flatten(2)  # [B, Q, D]
        attended = self.proj(attended)
        if self.mlp is not None:
            attended = attended + self.mlp(self.norm(attended))
        if self.pool == "token":
            return attended[:, 0]
        return attended.mean(1) if self.pool == "avg" else attended


class FoldedMeanPool(nn.Module):
    """Attention of the mean token.

    Args:
        pool: of CLIP's ResNets.
    """

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.n_heads = pool.num_heads
        factor = (pool.q_proj.out_features // self.n_heads) ** -0.5
        weight, bias = _weight_and_bias(pool.q_proj)
        self.query = make_linear(factor * weight, factor * bias)
        self.key, self.value, self.out = pool.k_proj, pool.v_proj, pool.c_proj
        self.register_buffer("positions", pool.positional_embedding)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D_student]."""
        tokens = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        query = self.query(tokens[:, :1]).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        key = self.key(tokens).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        value = self.value(tokens).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        attended = (query @ key.transpose(-1, -2)).softmax(dim=-1) @ value  # [B, heads, 1, d]
        pooled: Tensor = self.out(attended.flatten(1))
        return pooled


def _weight_and_bias(linear: Any) -> tuple[Tensor, Tensor]:
    bias = torch.zeros(len(linear.weight)) if linear.bias is None else linear.bias
    return linear.weight.double(), bias.double()
