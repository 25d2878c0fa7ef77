"""A teacher sees its student's crop in its own size and normalization."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.clip.backbone import Backbone
from kdedge.loading.decoding import converted, normalizer
from kdedge.runtime.preprocess import Preprocess, resize_and_crop


def prepared(preprocess: Preprocess) -> torch.Tensor:
    """[1, 3, H, W] of a smooth image."""
    ramp = np.linspace(0, 255, 96, dtype=np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (96, 1)), np.tile(ramp[:, None], (1, 96)), np.full((96, 96), 90)], -1
    )
    image = Image.fromarray(pixels.astype(np.uint8))
    pixels = torch.from_numpy(np.array(resize_and_crop(image, preprocess)))
    return normalizer(preprocess, torch.device("cpu"))(pixels[None])


def test_images_of_the_same_size_and_normalization_stay_the_same(
    tiny_backbone: Backbone,
) -> None:
    theirs = tiny_backbone.preprocess
    ours, images = replace(theirs, interpolation="bilinear", resize_mode="squash"), prepared(theirs)
    assert converted(images, ours, theirs) is images


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        ({"mean": (0.5, 0.4, 0.3), "std": (1.0, 0.5, 0.25)}, 1e-4),
        # resized twice, and rounded to 8 bits between
        ({"size_px": 48, "mean": (0.0,) * 3, "std": (1.0,) * 3}, 0.05),
    ],
)
def test_another_normalization_or_size_is_undone(
    tiny_backbone: Backbone, change: dict[str, Any], tolerance: float
) -> None:
    theirs, features_of = tiny_backbone.preprocess, tiny_backbone.image_features
    ours = replace(theirs, **change)
    expected = features_of(prepared(theirs))
    found = features_of(converted(prepared(ours), ours, theirs))
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    raw = features_of(
        torch.nn.functional.interpolate(prepared(ours), (theirs.size_px, theirs.size_px))
    )
    assert (raw - expected).abs().max() > 2 * tolerance


def test_resized_images_have_no_colors_beyond_black_and_white(tiny_backbone: Backbone) -> None:
    theirs = tiny_backbone.preprocess
    ours = replace(theirs, size_px=2 * theirs.size_px, mean=(0.0,) * 3, std=(1.0,) * 3)
    edge = torch.zeros(1, 3, ours.size_px, ours.size_px)
    edge[..., 31:] = 1.0
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (theirs.mean, theirs.std))
    pixels = converted(edge, ours, theirs) * std + mean
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
