"""Calibration images: real ones, each content once, spread over the predicted classes."""

from __future__ import annotations

import io
import logging
from collections import Counter
from hashlib import sha256

import numpy as np
import pytest
from PIL import Image

from kdedge.data.sources import Item
from kdedge.deploy.int8_images import N_CANDIDATES, CalibrationSet, choose_calibration_images
from kdedge.errors import DataError
from kdedge.runtime.preprocess import Preprocess

PREPROCESS = Preprocess(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class Pictures:
    """Gray images in memory; an image's class is its gray level's decade."""

    def __init__(self, levels: list[int]) -> None:
        self._files = [png(level) for level in levels]
        self.items = [Item(f"{index:04d}.png", None) for index in range(len(levels))]
        self.digests = {i: sha256(data).hexdigest() for i, data in enumerate(self._files)}

    def read(self, i: int) -> bytes:
        return self._files[i]


def png(level: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (10, 8), (level, level, level)).save(data, "png")
    return data.getvalue()


def decade(pixels: np.ndarray) -> np.ndarray:
    """Logits [B, 26] whose largest is the class gray level // 10."""
    return np.eye(26, dtype=np.float32)[pixels[:, 0, 0, 0] // 10]


def choose(pictures: Pictures, n_images: int, *, seed: int = 1) -> CalibrationSet:
    return choose_calibration_images(
        pictures, pictures.digests, n_images=n_images, seed=seed, predict=decade,
        preprocess=PREPROCESS,
    )  # fmt: skip


def of(chosen: CalibrationSet, key: str) -> list[object]:
    """A fact of each image."""
    return [file[key] for file in chosen.files]


def test_rare_classes_are_taken_before_a_second_image_of_a_common_one() -> None:
    # 8 of ten images are of class 0 and 1, one is of class 20, one of class 25
    pictures = Pictures([0, 1, 2, 3, 10, 11, 12, 13, 205, 255])
    chosen = choose(pictures, 5)
    assert Counter(of(chosen, "predicted")) == {0: 2, 1: 1, 20: 1, 25: 1}
    assert sorted(of(chosen, "predicted")[:4]) == [0, 1, 20, 25]


def test_pixels_keys_hashes_and_classes_are_of_the_same_images() -> None:
    pictures = Pictures(list(range(0, 250, 7)))
    chosen = choose(pictures, 12)
    assert chosen.pixels.shape == (12, 8, 8, 3)
    assert chosen.pixels.dtype == np.uint8
    levels = chosen.pixels[:, 0, 0, 0]
    assert [f"{level // 7:04d}.png" for level in levels] == of(chosen, "key")
    assert [pictures.digests[level // 7] for level in levels] == of(chosen, "sha256")
    assert (levels // 10).tolist() == of(chosen, "predicted")
    ranges, held_out = chosen.hold_out(6, 5)  # no more for ranges than are asked for
    assert (len(ranges.pixels), len(held_out.pixels)) == (5, 4)


def test_a_content_is_taken_once() -> None:
    chosen = choose(Pictures([5, 5, 5, 5, 60, 60, 7]), 7)
    assert sorted(chosen.pixels[:, 0, 0, 0].tolist()) == [5, 7, 60]


def test_the_seed_decides_and_nothing_else() -> None:
    pictures = Pictures(list(range(200)))
    assert choose(pictures, 20).files == choose(pictures, 20).files
    assert choose(pictures, 20).files != choose(pictures, 20, seed=2).files


def test_a_large_pool_is_not_read_whole() -> None:
    n_classified = 0

    def count(pixels: np.ndarray) -> np.ndarray:
        nonlocal n_classified
        n_classified += len(pixels)
        return decade(pixels)

    pictures = Pictures(list(range(250)))
    chosen = choose_calibration_images(
        pictures, pictures.digests, n_images=20, seed=1, predict=count, preprocess=PREPROCESS
    )
    assert len(chosen.files) == 20
    assert n_classified == 20 * N_CANDIDATES


def test_only_the_images_that_were_offered_are_taken() -> None:
    pictures = Pictures(list(range(30)))
    offered = {index: pictures.digests[index] for index in (3, 4, 29)}
    chosen = choose_calibration_images(
        pictures, offered, n_images=30, seed=1, predict=decade, preprocess=PREPROCESS
    )
    assert sorted(of(chosen, "key")) == ["0003.png", "0004.png", "0029.png"]


def test_the_record_names_every_file() -> None:
    chosen = choose(Pictures(list(range(40))), 10)
    record = chosen.record()
    assert (record["n_images"], record["seed"]) == (10, 1)
    assert record["n_classes"] == len(set(of(chosen, "predicted")))
    assert record["preprocess"] == {
        "size_px": PREPROCESS.size_px,
        "interpolation": PREPROCESS.interpolation,
        "resize_mode": PREPROCESS.resize_mode,
        "normalization": "in graph",
    }
    assert [file["key"] for file in record["files"]] == of(chosen, "key")
    assert [file["sha256"] for file in record["files"]] == of(chosen, "sha256")
    assert [file["predicted"] for file in record["files"]] == of(chosen, "predicted")


def test_without_an_image_there_is_no_set() -> None:
    with pytest.raises(DataError, match="No unlabeled image is left"):
        choose(Pictures([]), 5)


def test_few_images_are_said_to_be_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        choose(Pictures([1, 2, 3]), 500).hold_out(1, 500)
    (record,) = caplog.records
    assert record.getMessage().startswith("INT8 is calibrated on only 2 images")


def test_an_image_that_was_damaged_meanwhile_is_named() -> None:
    pictures = Pictures([1, 2, 3])
    pictures._files[1] = b"no picture"
    with pytest.raises(DataError, match=r"0001\.png: not a readable image"):
        choose(pictures, 3)
