"""Pooling by attention: one vector from all tokens of an image.

SigLIP's pooling (timm's `AttentionPoolLatent`) has learned queries that are the same for all
images: the product of query and key weights is one linear layer with one output per head and
query. In CLIP's ResNets (`AttentionPool2d`) the mean token is the query; only its output is
computed.
"""

from __future__ import annotations

import torch
from open_clip.modified_resnet import AttentionPool2d
from timm.layers.attention_pool import AttentionPoolLatent
from torch import Tensor, nn

from kdedge.fold.linear import make_linear, plain_weight_and_bias


def fold_pooling(module: nn.Module) -> nn.Module | None:
    """The folded form of an attention pooling layer; None for any other module."""
    if isinstance(module, AttentionPool2d):
        return FoldedMeanPool(module)
    if isinstance(module, AttentionPoolLatent) and isinstance(module.k_norm, nn.Identity):
        return FoldedLatentPool(module)
    return None


class FoldedLatentPool(nn.Module):
    """Attention pooling with constant queries.

    Args:
        pool: the layer to fold; its queries are computed once, here.
    """

    positions: Tensor | None

    def __init__(self, pool: AttentionPoolLatent) -> None:
        super().__init__()
        self.n_heads = pool.num_heads
        self.pool = pool.pool
        queries = _split(pool.q(pool.latent[0]).double(), self.n_heads)  # [Q, heads, d]
        queries = pool.q_norm(queries.float()).double() * pool.scale
        weight, bias = plain_weight_and_bias(pool.kv)
        key, value = weight.chunk(2)
        key_bias, value_bias = bias.chunk(2)
        key, key_bias = (t.reshape(self.n_heads, -1, *t.shape[1:]) for t in (key, key_bias))
        scores = torch.einsum("qhd,hdi->hqi", queries, key)
        shift = torch.einsum("qhd,hd->hq", queries, key_bias)
        self.scores = make_linear(scores.flatten(0, 1), shift.flatten())
        self.value = make_linear(value, value_bias)
        positions = pool.pos_embed
        self.register_buffer("positions", None if positions is None else positions.detach())
        self.proj = pool.proj
        self.norm = pool.norm
        self.mlp = pool.mlp

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        if self.positions is not None:
            tokens = tokens + self.positions
        scores = _split(self.scores(tokens), self.n_heads)  # [B, N, heads, Q]
        weights = scores.permute(0, 2, 3, 1).softmax(dim=-1)
        values = _split(self.value(tokens), self.n_heads).transpose(1, 2)
        attended: Tensor = self.proj((weights @ values).transpose(1, 2).flatten(2))  # [B, Q, D]
        if self.mlp is not None:
            attended = attended + self.mlp(self.norm(attended))
        if self.pool == "token":
            return attended[:, 0]
        return attended.mean(1) if self.pool == "avg" else attended


class FoldedMeanPool(nn.Module):
    """Attention pooling whose query is the mean token.

    Args:
        pool: the layer of CLIP's ResNets to fold.
    """

    positions: Tensor

    def __init__(self, pool: AttentionPool2d) -> None:
        super().__init__()
        self.n_heads = pool.num_heads
        factor = (pool.q_proj.out_features // self.n_heads) ** -0.5
        weight, bias = plain_weight_and_bias(pool.q_proj)
        self.query = make_linear(factor * weight, factor * bias)
        self.key = pool.k_proj
        self.value = pool.v_proj
        self.out = pool.c_proj
        self.register_buffer("positions", pool.positional_embedding.detach())

    def forward(self, features: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D_student]."""
        tokens = features.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positions
        query = _split(self.query(tokens[:, :1]), self.n_heads).transpose(1, 2)
        key = _split(self.key(tokens), self.n_heads).transpose(1, 2)
        value = _split(self.value(tokens), self.n_heads).transpose(1, 2)
        attended = (query @ key.transpose(-1, -2)).softmax(dim=-1) @ value  # [B, heads, 1, d]
        pooled: Tensor = self.out(attended.flatten(1))
        return pooled


def _split(tokens: Tensor, n_heads: int) -> Tensor:
    """[..., D] -> [..., heads, D / heads]."""
    return tokens.reshape(*tokens.shape[:-1], n_heads, -1)
