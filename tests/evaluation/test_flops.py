"""Counted work against a closed formula of each architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdedge.evaluation.flops import count_gmacs
from kdedge.methods.base import MethodInputs
from kdedge.paper.methods import coop


def block(n: int, width: int) -> int:
    """Multiply-adds of one residual attention block on n tokens.

    Four linears of the attention, two of the MLP with 4 x width hidden; scores and weighted sums.
    """
    return 12 * n * width**2 + 2 * n**2 * width


def image_tower(*, size: int, patch: int, width: int, n_layers: int, embed_dim: int) -> int:
    """Multiply-adds of CLIP's ViT, every block on every token."""
    n_patches = (size // patch) ** 2
    patches = n_patches * 3 * patch**2 * width
    return patches + n_layers * block(n_patches + 1, width) + width * embed_dim


def text_tower(*, n_positions: int, width: int, n_layers: int, embed_dim: int) -> int:
    """Multiply-adds of CLIP's text encoder on one text."""
    return n_layers * block(n_positions, width) + width * embed_dim


CLIPS = {
    "ViT-B-16": ({"size": 224, "patch": 16, "width": 768, "n_layers": 12, "embed_dim": 512}, 512),
    "ViT-B-32": ({"size": 224, "patch": 32, "width": 768, "n_layers": 12, "embed_dim": 512}, 512),
    "ViT-L-14": ({"size": 224, "patch": 14, "width": 1024, "n_layers": 24, "embed_dim": 768}, 768),
}
PUBLISHED_GFLOPS = {  # open_clip's model profile: image, text
    "ViT-B-16": (35.13, 5.96),
    "ViT-B-32": (8.82, 5.96),
    "ViT-L-14": (162.03, 13.30),
}


@pytest.mark.parametrize("name", CLIPS)
def test_clips_encoders_need_what_the_formula_says_and_what_is_published(name: str) -> None:
    from open_clip import CLIP, get_model_config

    sizes, text_width = CLIPS[name]
    with torch.device("meta"):
        model = CLIP(**get_model_config(name)).eval()
    image = count_gmacs(model.visual, torch.zeros(1, 3, 224, 224, device="meta"))
    tokens = torch.zeros(1, 77, dtype=torch.int64, device="meta")
    text = count_gmacs(lambda _: model.encode_text(tokens), torch.zeros(1, 3, 1, 1, device="meta"))

    assert image == pytest.approx(image_tower(**sizes) / 1e9, rel=1e-9)
    expected = text_tower(
        n_positions=77, width=text_width, n_layers=12, embed_dim=sizes["embed_dim"]
    )
    assert text == pytest.approx(expected / 1e9, rel=1e-9)
    assert (2 * image, 2 * text) == pytest.approx(PUBLISHED_GFLOPS[name], abs=0.005)


def test_a_call_is_counted_as_matrix_products_and_leaves_torchs_fast_path(
    tiny_backbone: Any,
) -> None:
    method = coop.Method(
        tiny_backbone,
        coop.Settings(),
        MethodInputs(["cat", "dog"], "{}", range(2), torch.Generator()),
    )
    images = torch.randn(3, 3, 32, 32)

    def logits(batch: torch.Tensor) -> torch.Tensor:
        return method.forward_features(batch) @ method.class_vectors().T

    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as executed:
        logits(images)
    had_fast_path = torch.backends.mha.get_fastpath_enabled()
    assert 2e9 * count_gmacs(logits, images) == executed.get_total_flops() > 0
    assert torch.backends.mha.get_fastpath_enabled() == had_fast_path


def test_a_linear_layer_is_a_multiply_add_for_each_weight() -> None:
    assert count_gmacs(nn.Linear(8, 5), torch.zeros(7, 8)) == pytest.approx(7 * 8 * 5 / 1e9)


def test_frozen_attention_is_counted_though_torch_has_a_kernel_of_its_own_for_it() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval().requires_grad_(False)
    tokens = torch.zeros(1, 3, 16)
    gmacs = count_gmacs(lambda x: attention(x, x, x, need_weights=False)[0], tokens)
    assert gmacs == pytest.approx((3 * 16 * 64 + 2 * 3 * 3 * 16) / 1e9)
