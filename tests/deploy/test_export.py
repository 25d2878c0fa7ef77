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

from kdedge.data.sources._protocol import Item
from kdedge.deploy.reference import run_reference
from kdedge.deploy.trained import TrainedModel, load_trained_model
from kdedge.errors import RecipeError
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.images import Images


class Pictures:
    """Gray pictures in memory."""

    def __init__(self, name: str, n_images: int) -> None:
        self.items = [Item(f"{name}{index}", None) for index in range(n_images)]

    def read(self, i: int) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (8, 8), (i, i, i)).save(data, "png")
        return data.getvalue()


def images_of(name: str, n_images: int) -> Images:
    digests = {i: sha256(f"{name}{i}".encode()).hexdigest() for i in range(n_images)}
    return Images(Pictures(name, n_images), tuple(range(n_images)), (), digests)


class Mean:
    """A model whose feature is each image's mean, times a scale of two."""

    scale = 2.0

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2, 3))[:, None]


@pytest.fixture
def answer() -> Any:
    """The reference on test images, or on a pool where there are none."""

    def give(test: Images | None, pool: Images | None, n_images: int) -> Any:
        trained: Any = SimpleNamespace(
            images=lambda key: test,
            exported_labels=lambda images: [None] * len(images.indices),
            model=Mean(),
            vectors=SimpleNamespace(vectors=torch.ones(1, 1)),
            backbone=SimpleNamespace(
                preprocess=Preprocess(8, (0.0,) * 3, (1 / 255,) * 3), device=torch.device("cpu")
            ),
            run=SimpleNamespace(path=Path("runs/tiny/02")),
        )
        return run_reference(trained, pool, n_images)

    return give


def test_no_test_image_may_choose_ranges_whether_it_is_compared_or_not(answer: Any) -> None:
    test = images_of("test", 10)
    found = answer(test, images_of("pool", 4), 5)
    assert found.keys == tuple(f"test{i}" for i in (0, 2, 4, 6, 8))
    assert found.pixels[:, 0, 0, 0].tolist() == [0, 2, 4, 6, 8]
    np.testing.assert_allclose(found.logits[:, 0], [0, 4, 8, 12, 16], rtol=1e-6)
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
    assert len(found.keys) == len(found.pixels) == len(found.digests) == expected
    assert found.images == f"{expected} of {n_pool} images of data.unlabeled"


@pytest.mark.parametrize("pool", [None, images_of("pool", 0)])
def test_without_any_image_there_is_nothing_to_compare_on(answer: Any, pool: Images | None) -> None:
    with pytest.raises(RecipeError, match="runs/tiny/02: its recipe has no images"):
        answer(None, pool, 5)


def test_a_label_is_the_position_of_its_name_in_the_exported_list() -> None:
    images = images_of("test", 4)
    for item, label in enumerate((0, 1, 2, None)):
        images.source.items[item] = Item(f"test{item}", label)
    parts: dict[str, Any] = dict.fromkeys(("run", "loaded", "model", "backbone"))
    own, vectors = (
        SimpleNamespace(names=("cat", "dog", "fox")),
        SimpleNamespace(class_names=("fox", "cat")),
    )
    trained = TrainedModel(**parts, own=own, vectors=vectors)
    assert trained.exported_labels(images) == [1, None, 0, None]


def test_a_run_that_is_not_finished_is_not_exported() -> None:
    run: Any = SimpleNamespace(is_finished=False, path=Path("runs/tiny/03"))
    with pytest.raises(RecipeError, match=r"tiny/03 is not finished\.\n.*--resume"):
        load_trained_model(run, device=torch.device("cpu"))
