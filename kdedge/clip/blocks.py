"""One residual attention block of CLIP, with the work that nobody reads left out.

Both encoders are stacks of open_clip's `ResidualAttentionBlock`: `x + MHA(ln_1(x))`, then `x +
MLP(ln_2(x))` (CLIP, arXiv:2103.00020). The weights stay open_clip's; the arithmetic is here, since
prompts allow two exact savings that a ready-made block has no argument for: tokens whose outputs
are replaced before the next block need keys and values only, and the last block needs one query an
image or text.
"""

from __future__ import annotations

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional as F

_QUICK_GELU_SLOPE = 1.702
"""QuickGELU(x) = x sigmoid(1.702 x) (OpenAI's CLIP)."""


def attention_block(
    block: ResidualAttentionBlock,
    tokens: Tensor,
    *,
    queries: Tensor | None = None,
    memory: Tensor | None = None,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Runs one block and gives the outputs at the query tokens.

    Args:
        block: open_clip's block, frozen or not; layer scale is applied where it has one.
        tokens: [B, N, D], what is attended to.
        queries: [B, Q, D], the tokens whose outputs are wanted; `tokens` where not given.
        memory: [M, D], tokens that are attended to after `tokens`, the same for the whole batch.
            Their keys and values are computed once, and they have no output.
        attn_mask: bool, broadcast to [B, heads, Q, N + M]; True where a query may look.

    Returns:
        [B, Q, D].
    """
    attention = block.attn
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    normed = block.ln_1(tokens)
    if queries is None:
        queries = tokens
        query, key, value = F.linear(normed, weight, bias).chunk(3, dim=-1)
    else:
        query = F.linear(block.ln_1(queries), weight[:width], bias[:width])
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    if memory is not None:
        shared = F.linear(block.ln_1(memory), weight[width:], bias[width:])  # [M, 2 D]
        shared_key, shared_value = shared.expand(len(tokens), -1, -1).chunk(2, dim=-1)
        key = torch.cat([key, shared_key], dim=1)  # [B, N + M, D]
        value = torch.cat([value, shared_value], dim=1)
    n_heads = attention.num_heads
    attended = F.scaled_dot_product_attention(
        _split_heads(query, n_heads),
        _split_heads(key, n_heads),
        _split_heads(value, n_heads),
        attn_mask=attn_mask,
    )
    attended = attended.transpose(1, 2).flatten(2)  # [B, Q, D]
    output = F.linear(attended, attention.out_proj.weight, attention.out_proj.bias)
    residual = queries + block.ls_1(output)
    result: Tensor = residual + block.ls_2(_mlp(block.mlp, block.ln_2(residual)))
    return result


def _mlp(mlp: nn.Sequential, tokens: Tensor) -> Tensor:
    """[B, N, D] -> [B, N, D]: linear, activation, linear.

    QuickGELU is silu(a x) / a. Both factors go into the products, where they cost nothing, so that
    the hidden tokens, four times as wide as any others, are passed over once and not three times,
    once and not five times on the way back, and one of them is kept and not two.
    """
    if not isinstance(mlp.gelu, QuickGELU):
        result: Tensor = mlp(tokens)
        return result
    first, last, slope = mlp.c_fc, mlp.c_proj, _QUICK_GELU_SLOPE
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    rows = tokens.flatten(0, -2)
    hidden = torch.addmm(first.bias, rows, first.weight.T, beta=slope, alpha=slope)
    output = torch.addmm(last.bias, F.silu(hidden), last.weight.T, alpha=1 / slope)
    return output.view(tokens.shape)


def _split_heads(tokens: Tensor, n_heads: int) -> Tensor:
    """[B, N, D] -> [B, heads, N, D / heads]."""
    return tokens.reshape(*tokens.shape[:2], n_heads, -1).transpose(1, 2)
