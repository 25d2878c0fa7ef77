"""Token merging: each block joins r pairs of similar patch tokens, so that later blocks have fewer.

Paper: Bolya et al., Token Merging (ToMe), ICLR 2023, arXiv:2210.09461, section 3. Tokens are merged
between attention and MLP. Similarity is the cosine of the attention's keys, averaged over the
heads; the kept pairs come from bipartite soft matching. A merged token is the average of its
patches, and counts as many times in the attention (equation 1, proportional attention).

r is fixed, so every block has a known number of tokens, as engines and fixed-shape graphs need. Not
from the paper:

- Besides the class token, visual prompts are never merged. The class token is the output; prompts
  are learned for their places and do not come from the image. A prompt that is replaced in the next
  block has no output at all.
- Tokens that are not merged keep their order. Sorted by similarity, two of them could change places
  by a rounding error, and would be divided differently in the next block.
- The last block merges nothing: only its class token is used, which is already computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def max_merge_tokens(n_patches: int, n_blocks: int) -> int:
    """The largest r for an image encoder; at least one patch token is left then.

    A block merges at most half of its patch tokens: r <= (n_patches - r i) / 2 in block i. The last
    block that merges has i = n_blocks - 2, so r <= n_patches / n_blocks.

    Args:
        n_patches: patch tokens of the first block.
        n_blocks: blocks of the encoder, of which the last merges nothing.
    """
    return n_patches // n_blocks if n_blocks > 1 else 0


class Matching(NamedTuple):
    """Tokens of A and the tokens of B that they are merged into; A has even positions, B odd ones.

    Attributes:
        kept: [B, |A| - r], positions in A of the tokens that stay, ascending.
        merged: [B, r], positions in A of the tokens that are merged.
        partners: [B, r], positions in B of the tokens that they are merged into.
    """

    kept: Tensor
    merged: Tensor
    partners: Tensor


def log_sizes(sizes: Tensor, n_keys: int) -> Tensor:
    """The bias that proportional attention adds to the products of queries and keys (equation 1).

    Args:
        sizes: [B, P], patches in each patch token.
        n_keys: number of all keys: class token, patch tokens, prompts. The class token and prompts
            have size 1.

    Returns:
        [B, 1, 1, n_keys].
    """
    n_images, n_patches = sizes.shape
    before = sizes.new_zeros(n_images, 1)
    after = sizes.new_zeros(n_images, n_keys - 1 - n_patches)
    return torch.cat([before, sizes.log(), after], dim=1)[:, None, None]


def bipartite_soft_matching(keys: Tensor, r: int) -> Matching:
    """Finds the r most similar pairs of a token of A and one of B (section 3, steps 1 to 3).

    Args:
        keys: [B, heads, P, D / heads], the keys of the patch tokens.
        r: number of pairs, at most P / 2.
    """
    keys = keys.sum(dim=1)  # the sum over the heads has the same cosine as their average
    keys = keys / (keys * keys).sum(dim=-1, keepdim=True).sqrt()
    a, b = keys[:, ::2], keys[:, 1::2]
    similarity, partners = (a @ b.transpose(1, 2)).topk(1)  # [B, |A|, 1]
    merged = similarity[..., 0].topk(r).indices
    positions = torch.arange(a.shape[1], device=keys.device)
    is_kept = 1 - (merged[..., None] == positions).to(keys.dtype).sum(dim=1)  # [B, |A|]
    # Kept tokens get positive scores that decrease with their position; merged tokens get 0
    kept = (is_kept * (len(positions) - positions)).topk(len(positions) - r).indices
    return Matching(kept, merged, partners[..., 0].gather(1, merged))


def merge(
    tokens: Tensor, sizes: Tensor | None, keys: Tensor, *, n_patches: int, r: int
) -> tuple[Tensor, Tensor]:
    """Merges r patch tokens into others (section 3, steps 4 and 5).

    Args:
        tokens: [B, 1 + P + M, D]: class token, patch tokens, prompts. Gradients pass through.
        sizes: [B, P], patches in each patch token; None if each is one patch.
        keys: [B, heads, 1 + P + M, D / heads], keys of the preceding attention. No gradients.
        n_patches: P.
        r: number of merged tokens, at most P / 2.

    Returns:
        [B, 1 + P - r + M, D]: class token, kept tokens of A, tokens of B, prompts; and the new
        sizes, [B, P - r].
    """
    patches = tokens[:, 1 : n_patches + 1]
    if sizes is None:
        sizes = torch.ones_like(patches[..., 0])
    matching = bipartite_soft_matching(keys[:, :, 1 : n_patches + 1].detach(), r)
    a, b = patches[:, ::2], patches[:, 1::2]
    sizes_a, sizes_b = sizes[:, ::2], sizes[:, 1::2]
    positions = torch.arange(b.shape[1], device=tokens.device)
    # A product with one-hot rows, as engines cannot scatter a sum
    assigned = (matching.partners[:, None] == positions[:, None]).to(tokens.dtype)  # [B, |B|, r]
    added = sizes_a.gather(1, matching.merged)[..., None]
    merged_sizes = sizes_b[..., None] + assigned @ added
    weighted = sizes_b[..., None] * b + assigned @ (added * _rows(a, matching.merged))
    parts = (
        tokens[:, :1],
        _rows(a, matching.kept),
        weighted / merged_sizes,
        tokens[:, n_patches + 1 :],
    )
    kept_sizes = sizes_a.gather(1, matching.kept)
    return torch.cat(parts, dim=1), torch.cat([kept_sizes, merged_sizes[..., 0]], dim=1)


def _rows(tokens: Tensor, positions: Tensor) -> Tensor:
    """[B, N, D], [B, M] -> [B, M, D]: the tokens at these positions."""
    return tokens.gather(1, positions[..., None].expand(-1, -1, tokens.shape[-1]))
