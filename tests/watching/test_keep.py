"""The least certain frames are kept, one a scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from kdedge.watching.bounded_folder import Limit, bounded_folder
from kdedge.watching.frame import is_changed, thumbnail
from kdedge.watching.keep import Keeper


def scene(seed: int, *, shift_px: int = 0, noise: float = 0.0) -> Image.Image:
    """A picture of soft spots, which may be moved a little, with a sensor's noise."""
    rng = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(320) + shift_px, np.arange(240))
    gray = sum(
        rng.uniform(40, 120)
        * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * rng.uniform(20, 60) ** 2))
        for a, b in rng.uniform(0, 300, (8, 2))
    )
    gray = gray + np.random.default_rng(seed + 1000).normal(0, noise, gray.shape)
    return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")


def kept(folder: Path, frames: list[tuple[float, Image.Image]], limit: int = 9) -> list[str]:
    with bounded_folder(folder, Limit(limit)) as bounded:
        keeper = Keeper(bounded)
        for number, (score, image) in enumerate(frames, 1):
            keeper.add(f"{number}.jpg", score, image, thumbnail(image))
        keeper.finish()
    return sorted(path.name for path in folder.glob("*.jpg"))


def test_noise_and_small_movement_are_the_same_scene_and_another_picture_is_not() -> None:
    first = thumbnail(scene(1))
    assert not is_changed(first, thumbnail(scene(1, shift_px=4, noise=15)))
    assert all(is_changed(first, thumbnail(scene(seed))) for seed in range(2, 10))
    assert is_changed(None, first)


def test_of_a_scene_the_least_certain_frame_is_kept(tmp_path: Path) -> None:
    frames = [(score, scene(1, noise=5)) for score in (60, 40, 50)]
    frames += [(score, scene(2, noise=5)) for score in (70, 80)]
    assert kept(tmp_path / "k", frames) == ["2.jpg", "4.jpg"]


def test_the_last_scene_is_kept_at_the_end_and_is_a_picture(tmp_path: Path) -> None:
    assert kept(tmp_path / "k", [(50, scene(3))]) == ["1.jpg"]
    with Image.open(tmp_path / "k/1.jpg") as image:
        assert image.size == (320, 240)


def test_the_most_certain_ones_are_replaced(tmp_path: Path) -> None:
    frames = [(score, scene(seed)) for seed, score in enumerate((50, 90, 10, 70, 30))]
    assert kept(tmp_path / "k", frames, limit=2) == ["3.jpg", "5.jpg"]


def test_nothing_seen_keeps_nothing(tmp_path: Path) -> None:
    assert kept(tmp_path / "k", []) == []
