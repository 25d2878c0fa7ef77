"""Which unlabeled images are held out: as many as asked for, and copies of an image together."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.config.recipe import Recipe
from kdedge.data.images import Images
from kdedge.setup.classes import load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.workspace import Workspace


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images_of(tmp_path: Path) -> Callable[..., RecipeImages]:
    """Writes a pool with some copies of each image; gives the images of a recipe with it."""

    def make(copies: list[int], *, hold_out: int) -> RecipeImages:
        pool = tmp_path / "pool"
        pool.mkdir()
        for seed, n_copies in enumerate(copies):
            for number in range(n_copies):
                (pool / f"{seed}-{number}.png").write_bytes(png(seed))
        recipe = Recipe.model_validate(
            {
                "name": "held-out",
                "classes": {"names": ["cat", "dog"]},
                "data": {"unlabeled": {"folder": str(pool), "hold_out": hold_out}},
                "student": {"method": "zeroshot", "backbone": "ViT-B-16"},
            },
            strict=False,
        )
        workspace = Workspace(tmp_path / "runs", torch.device("cpu"))
        return RecipeImages(recipe, load_classes(recipe), workspace)

    return make


def n_images(images: Images | None) -> int:
    assert images is not None
    return len(images.indices)


def test_as_many_images_as_asked_for_are_held_out_and_the_others_are_trained_on(
    images_of: Callable[..., RecipeImages],
) -> None:
    images = images_of([1] * 10, hold_out=3)
    assert n_images(images.held_out()) == 3
    assert n_images(images.load("unlabeled")) == 7


def test_copies_that_do_not_fit_into_the_number_are_trained_on_together(
    images_of: Callable[..., RecipeImages],
) -> None:
    images = images_of([4, 4], hold_out=3)
    assert n_images(images.held_out()) == 0
    assert n_images(images.load("unlabeled")) == 8


def test_copies_count_as_many_images(images_of: Callable[..., RecipeImages]) -> None:
    images = images_of([3, 3, 3], hold_out=4)
    assert n_images(images.held_out()) == 3
