"""Which images exported files are compared on, and which are kept from calibration."""

from __future__ import annotations

import io
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kdedge.data.images import Images
from kdedge.data.sources import Item
from kdedge.deploy.reference import run_reference
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess, decode_image


class Pictures:
    """Gray images in memory."""

    def __init__(self, name: str, n_images: int) -> None:
        self.items = [Item(f"{name}{index}", None) for index in range(n_images)]

    def read(self, i: int) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (i, i, i)).save(data, "png")
        return data.getvalue()


def images_of(name: str, n_images: int) -> Images:
    digests = {i: sha256(f"{name}{i}".encode()).hexdigest() for i in range(n_images)}
    return Images(Pictures(name, n_images), tuple(range(n_images)), (), digests)


@pytest.fixture
def answer() -> Any:
    """The reference on test images, or on a pool where there are none."""

    def give(test: Images | None, pool: Images | None, n_images: int) -> Any:
        trained: Any = SimpleNamespace(
            class_names=("cat",),
            images=SimpleNamespace(load=lambda key: test),
            labels_of=lambda images: [None] * len(images.indices),
            forward_features=lambda images: images.mean(dim=(1, 2, 3))[:, None],
            scale=2.0,
            offsets=None,
            class_vectors=lambda: torch.ones(1, 1),
            preprocess=Preprocess(8, (0.0,) * 3, (1 / 255,) * 3),
            device=torch.device("cpu"),
            run=SimpleNamespace(path=Path("runs/tiny/02")),
            recipe=SimpleNamespace(export=SimpleNamespace(open_classes=False)),
        )
        return run_reference(trained, pool, n_images, calibrate=False)

    return give


def test_no_test_image_may_choose_ranges_whether_it_is_compared_or_not(answer: Any) -> None:
    test = images_of("test", 10)
    found = answer(test, images_of("pool", 4), 5)
    assert found.keys == tuple(f"test{i}" for i in (0, 2, 4, 6, 8))
    assert found.outputs.pixels[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(found.outputs.logits[:, 0], [0, 4, 8, 12, 16], rtol=1e-6)
    assert found.digests == set(test.digests.values())
    assert found.images == "5 of 10 images of data.test"


@pytest.mark.parametrize(
    ("n_pool", "n_images", "expected"), [(10, 20, 5), (10, 3, 3), (1, 20, 1), (2, 20, 1)]
)
def test_without_test_images_half_of_the_pool_is_left_to_choose_ranges_from(
    answer: Any, n_pool: int, n_images: int, expected: int
) -> None:
    pool = images_of("pool", n_pool)
    found = answer(None, pool, n_images)
    assert len(found.keys) == len(found.outputs.pixels) == len(found.digests) == expected
    assert found.images == f"{expected} of {n_pool} images of data.unlabeled"


def test_long_images_that_are_cut_and_made_smaller_can_be_decoded(
    answer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = io.BytesIO()
    Image.new("RGB", (800, 9)).save(data, "png")
    monkeypatch.setattr(Pictures, "read", lambda self, i: data.getvalue())
    files = answer(images_of("test", 3), None, 3).smoke_set.images
    assert [decode_image(file).size for file in files] == [(640, 7), (534, 9), (500, 5)]


@pytest.mark.parametrize("pool", [None, images_of("pool", 0)])
def test_without_any_image_there_is_nothing_to_compare_on(answer: Any, pool: Images | None) -> None:
    with pytest.raises(RecipeError, match="runs/tiny/02: its recipe has no images"):
        answer(None, pool, 5)
