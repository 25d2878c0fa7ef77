"""Token merging against the paper's steps, written out for one image at a time in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone
from kdedge.clip.token_merging import log_sizes, max_merge_tokens, merge
from kdedge.clip.vision import encode_image

FLOAT64 = {"atol": 1e-10, "rtol": 1e-9}
"""Sums in another order."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merge_literally(
    patches: Tensor, sizes: list[float], keys: Tensor, r: int
) -> tuple[Tensor, list[float]]:
    """Section 3's five steps for one image: patches [P, D], keys [heads, P, d]."""
    mean = keys.detach().mean(dim=0)
    a, b = list(range(0, len(patches), 2)), list(range(1, len(patches), 2))
    edges = []
    for i in a:
        similarity, j = max((float(F.cosine_similarity(mean[i], mean[j], dim=0)), j) for j in b)
        edges.append((similarity, i, j))
    edges = sorted(edges, reverse=True)[:r]
    merged = {i for _, i, _ in edges}
    tokens, counts = [], []
    for i in a:
        if i not in merged:
            tokens.append(patches[i])
            counts.append(sizes[i])
    for j in b:
        group = [j, *(i for _, i, partner in edges if partner == j)]
        count = sum(sizes[i] for i in group)
        tokens.append(sum(sizes[i] * patches[i] for i in group) / count)
        counts.append(count)
    return torch.stack(tokens), counts


@pytest.mark.parametrize(("n_patches", "r"), [(2, 1), (5, 2), (9, 4), (16, 3), (16, 8)])
@pytest.mark.parametrize("n_prompts", [0, 2])
def test_merging_is_that_of_the_paper(n_patches: int, r: int, n_prompts: int) -> None:
    n_tokens = 1 + n_patches + n_prompts
    tokens, keys = draw(3, n_tokens, 8), draw(3, 2, n_tokens, 4, seed=1)
    sizes = torch.randint(1, 5, (3, n_patches), generator=torch.Generator().manual_seed(2)).double()
    actual, new_sizes = merge(tokens, sizes, keys, n_patches=n_patches, r=r)
    for index in range(3):
        patches = tokens[index, 1 : 1 + n_patches]
        own_keys = keys[index, :, 1 : 1 + n_patches]
        expected, counts = merge_literally(patches, sizes[index].tolist(), own_keys, r)
        torch.testing.assert_close(actual[index, 1 : 1 + n_patches - r], expected, **FLOAT64)
        assert new_sizes[index].tolist() == counts
    # The class token and prompts stay as they are, in their places
    assert torch.equal(actual[:, 0], tokens[:, 0])
    assert torch.equal(actual[:, 1 + n_patches - r :], tokens[:, 1 + n_patches :])


def test_tokens_of_one_patch_need_no_sizes() -> None:
    tokens, keys, ones = draw(2, 7, 8), draw(2, 2, 7, 4, seed=1), torch.ones(2, 6).double()
    without = merge(tokens, None, keys, n_patches=6, r=2)
    torch.testing.assert_close(without, merge(tokens, ones, keys, n_patches=6, r=2))


def test_gradients_are_those_of_the_averages() -> None:
    tokens, keys = draw(2, 8, 3).requires_grad_(), draw(2, 2, 8, 4, seed=1).requires_grad_()
    sizes = torch.tensor([[1.0, 2, 3, 1, 1, 4], [2, 2, 1, 1, 1, 1]], dtype=torch.float64)

    def merged(tokens: Tensor) -> Tensor:
        return merge(tokens, sizes, keys, n_patches=6, r=2)[0]

    assert torch.autograd.gradcheck(merged, (tokens,))
    merged(tokens).sum().backward()
    assert keys.grad is None


@given(n_patches=st.integers(1, 300), n_blocks=st.integers(1, 30))
def test_the_largest_r_is_the_last_that_halves_no_blocks_tokens(
    n_patches: int, n_blocks: int
) -> None:
    def fits(r: int) -> bool:
        left = [n_patches - r * index for index in range(n_blocks)]
        return left[-1] >= 1 and all(2 * r <= before for before in left[:-1])

    most = max_merge_tokens(n_patches, n_blocks)
    if n_blocks == 1:  # the only block is the last
        assert most == 0
    else:
        assert fits(most)
        assert not fits(most + 1)


def test_a_merged_token_counts_as_its_patches() -> None:
    sizes = torch.tensor([[1.0, 3.0]])
    expected = torch.tensor([0, 0, math.log(3), 0])
    torch.testing.assert_close(log_sizes(sizes, n_keys=4)[0, 0, 0], expected)
    # As many equal keys instead of one
    query, key, value = draw(1, 1, 4, 8), draw(1, 1, 4, 8, seed=1), draw(1, 1, 4, 8, seed=2)
    once = F.scaled_dot_product_attention(
        query, key, value, attn_mask=log_sizes(sizes.double(), n_keys=4)
    )
    place = torch.tensor([0, 1, 2, 2, 2, 3])
    thrice = F.scaled_dot_product_attention(query, key[:, :, place], value[:, :, place])
    torch.testing.assert_close(once, thrice, **FLOAT64)


def encode_literally(visual: nn.Module, image: Tensor, prompts: Tensor, r: int) -> Tensor:
    """One image, [3, H, W]: every token through every block; prompts replaced as IVLP does."""
    patches = visual.conv1(image[None]).flatten(2)[0].T
    tokens = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
    n_ctx = prompts.shape[1]
    tokens = visual.ln_pre(torch.cat([tokens, prompts[0]]))
    sizes = [1.0] * len(patches)
    for index, block in enumerate(visual.transformer.resblocks):
        if 0 < index < len(prompts):
            tokens = torch.cat([tokens[: len(tokens) - n_ctx], prompts[index]])
        normed, attention = block.ln_1(tokens), block.attn
        query, key, value = (
            layer(normed).reshape(len(tokens), attention.num_heads, -1).transpose(0, 1)
            for layer in (attention.q, attention.k, attention.v)
        )
        weights = (query @ key.transpose(1, 2) / math.sqrt(key.shape[-1])).exp()
        weights = weights * torch.tensor([1.0, *sizes, *[1.0] * n_ctx], dtype=weights.dtype)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        tokens = tokens + attention.out((weights @ value).transpose(0, 1).flatten(1))
        n_patches = len(sizes)
        if index < len(visual.transformer.resblocks) - 1:
            merged, sizes = merge_literally(
                tokens[1 : 1 + n_patches], sizes, key[:, 1 : 1 + n_patches], r
            )
            tokens = torch.cat([tokens[:1], merged, tokens[1 + n_patches :]])
        tokens = tokens + block.mlp(block.ln_2(tokens))
    return visual.ln_post(tokens[0]) @ visual.proj


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("n_ctx", "r"), [(0, 1), (2, 3), (3, 5)])
def test_an_encoder_with_merging_is_the_written_out_one(
    tiny_backbone: Backbone, depth: int, n_ctx: int, r: int
) -> None:
    """16 patch tokens and 3 blocks; prompts are memory, ordinary tokens, or in the last block."""
    visual = copy.deepcopy(tiny_backbone.model.visual).double()
    images, prompts = draw(2, 3, 32, 32), draw(depth, n_ctx, 64, seed=1).requires_grad_()
    features = encode_image(visual, images, prompts, merge_tokens=r)
    expected = torch.stack([encode_literally(visual, image, prompts, r) for image in images])
    torch.testing.assert_close(features, expected, **FLOAT64)
    plain = encode_image(visual, images, prompts)
    assert float((features - plain).detach().abs().max()) > 1e-3
    if n_ctx:
        (actual,) = torch.autograd.grad(features.sum(), prompts)
        (wanted,) = torch.autograd.grad(expected.sum(), prompts)
        torch.testing.assert_close(actual, wanted, **FLOAT64)


def test_merging_runs_in_half_precision_too(tiny_backbone: Backbone) -> None:
    visual, images = tiny_backbone.model.visual, draw(4, 3, 32, 32).float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = encode_image(visual, images, merge_tokens=2)
    assert features.isfinite().all()
    cosine = F.cosine_similarity(features, encode_image(visual, images, merge_tokens=2))
    assert float(cosine.min()) > 0.95
