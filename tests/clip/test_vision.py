"""The prompted image encoder against open_clip's own and against the plain insertion of prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip import CLIP
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.vision import encode_image

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def prompts(depth: int, n_ctx: int, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(depth, n_ctx, width, generator=generator)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n_ctx", [0, 1, 4])
def test_leaving_out_what_nobody_reads_changes_no_feature_and_no_gradient(
    tiny_backbone: Backbone, tiny_open_clip: CLIP, plain_features: Any, depth: int, n_ctx: int
) -> None:
    visual = tiny_backbone.model.visual
    ours = prompts(depth, n_ctx).requires_grad_()
    plain = prompts(depth, n_ctx).requires_grad_()

    features = encode_image(visual, images(), ours)
    expected = plain_features(tiny_open_clip.visual, images(), plain)

    torch.testing.assert_close(features, expected, **FLOAT32)
    target = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (features * target).sum().backward()
    (expected * target).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, **FLOAT32)


def test_an_image_gets_the_same_features_in_any_batch(tiny_backbone: Backbone) -> None:
    visual = tiny_backbone.model.visual
    together = encode_image(visual, images(), prompts(2, 4))
    alone = torch.cat([encode_image(visual, image[None], prompts(2, 4)) for image in images()])
    torch.testing.assert_close(together, alone, **FLOAT32)
