"""Splits of kdedge's own, for sets without CoOp's split file.

Shares and rounding are those of CoOp's code (github.com/KaiyangZhou/CoOp, datasets/dtd.py and
datasets/oxford_pets.py). CoOp's random draw cannot be repeated, so each part has other images.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdedge.data.benchmarks._annotations import images_in
from kdedge.data.benchmarks._coop_split import Split

SEED = 1
"""Seed of the draw, the same for all runs. Our choice."""

Rows = Sequence[tuple[str, int]]
"""Path below the image folder, label."""


def in_three(class_names: Sequence[str], images: Mapping[int, Sequence[str]]) -> Split:
    """Divides each class into 50 % train, 20 % val and 30 % test.

    Args:
        class_names: in label order.
        images: label -> paths.
    """
    stream = random.Random(SEED)  # noqa: S311
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "val": [], "test": []}
    for label, paths in images.items():
        drawn = stream.sample(list(paths), len(paths))
        n_train, n_val = round(len(paths) * 0.5), round(len(paths) * 0.2)
        ends = {"train": (0, n_train), "val": (n_train, n_train + n_val)}
        ends["test"] = (n_train + n_val, len(paths))
        for part, (start, end) in ends.items():
            parts[part] += [(path, label) for path in drawn[start:end]]
    return Split(tuple(class_names), {part: tuple(rows) for part, rows in parts.items()})


def class_folders_in_three(root: Path, class_names: Mapping[str, str]) -> Split:
    """Divides a folder of class folders as `in_three` does.

    Args:
        root: the image folder.
        class_names: class folder -> class name, in label order.
    """
    images = {
        label: [f"{folder}/{name}" for name in images_in(root / folder)]
        for label, folder in enumerate(class_names)
    }
    return in_three(tuple(class_names.values()), images)


def with_official_test(class_names: Sequence[str], training: Rows, test: Rows) -> Split:
    """Keeps the official test images, and takes 20 % of each class's other images for val.

    Args:
        class_names: in label order.
        training: images of the official training part.
        test: images of the official test part.
    """
    stream = random.Random(SEED)  # noqa: S311
    by_label: dict[int, list[str]] = {}
    for path, label in training:
        by_label.setdefault(label, []).append(path)
    train: list[tuple[str, int]] = []
    val: list[tuple[str, int]] = []
    for label, paths in by_label.items():
        drawn = stream.sample(paths, len(paths))
        n_val = round(len(paths) * 0.2)
        val += [(path, label) for path in drawn[:n_val]]
        train += [(path, label) for path in drawn[n_val:]]
    parts = {"train": tuple(train), "val": tuple(val), "test": tuple(test)}
    return Split(tuple(class_names), parts)
