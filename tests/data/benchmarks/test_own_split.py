"""The sets' own rules, against slow versions of them."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.data.benchmarks import Split, oxford_flowers, sun397

SIZES = st.lists(st.integers(1, 45), min_size=1, max_size=6).filter(lambda n: sum(n) > 1)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def in_three(labels: list[int]) -> Split:
    """Flowers102's own split, of images with these labels."""
    scipy_io = pytest.importorskip("scipy.io")
    names = {str(label + 1): f"class {label}" for label in set(labels)}
    with folder() as place:
        scipy_io.savemat(place / "imagelabels.mat", {"labels": 1 + np.array([labels])})
        (place / "cat_to_name.json").write_text(json.dumps(names))
        return oxford_flowers.SET.own_split(place)


def with_official_test(names: list[str], training: list[str], test: list[str]) -> Split:
    """SUN397's own split, of classes and paths below their folders."""
    with folder() as place:
        for file, lines in (
            ("ClassName.txt", names),
            ("Training_01.txt", training),
            ("Testing_01.txt", test),
        ):
            (place / file).write_text("".join(f"/{line}\n" for line in lines))
        return sun397.SET.own_split(place)


@settings(max_examples=30)
@given(SIZES)
def test_three_parts_are_half_a_fifth_and_the_rest_of_each_class(sizes: list[int]) -> None:
    labels = [label for label, n in enumerate(sizes) for _ in range(n)]
    paths = [f"image_{number:05d}.jpg" for number in range(1, len(labels) + 1)]
    split = in_three(labels)
    for label, n in enumerate(sizes):
        found = {
            part: [path for path, its in rows if its == label] for part, rows in split.parts.items()
        }
        # CoOp, datasets/dtd.py: both rounded half to even
        n_train, n_val = round(0.5 * n), round(0.2 * n)
        expected = {"train": n_train, "val": n_val, "test": n - n_train - n_val}
        assert {part: len(rows) for part, rows in found.items()} == expected
        own = [path for path, its in zip(paths, labels, strict=True) if its == label]
        assert sorted(path for part in found.values() for path in part) == own


@settings(max_examples=30)
@given(SIZES)
def test_official_test_images_stay_and_a_fifth_of_the_others_is_for_val(sizes: list[int]) -> None:
    def rows(kind: str) -> list[tuple[str, int]]:
        return [
            (f"a/{label}/{kind}{i}.jpg", label) for label, n in enumerate(sizes) for i in range(n)
        ]

    training, test = rows(""), rows("test")
    names = [f"a/{label}" for label in range(len(sizes))]
    split = with_official_test(
        names, [path for path, _ in training[::-1]], [path for path, _ in test]
    )
    assert split.parts["test"] == tuple(test)
    assert sorted([*split.parts["train"], *split.parts["val"]]) == sorted(training)
    n_val = Counter(label for _, label in split.parts["val"])
    # CoOp, datasets/oxford_pets.py
    assert [n_val[label] for label in range(len(sizes))] == [round(n * 0.2) for n in sizes]


def test_images_are_drawn_and_not_taken_from_the_front() -> None:
    first = {f"image_{number:05d}.jpg" for number in range(1, 21)}
    assert {path for path, _ in in_three([0] * 40).parts["train"]} != first
