"""Pseudo-labels: chosen as a slow, obvious version chooses them, written, corrected, read."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.data.pseudo_labels import (
    PseudoLabel,
    most_confident_predicted,
    most_probable,
    read_pseudo_labels,
    write_pseudo_labels,
)
from kdedge.errors import DataError

NAMES = ("cat", "dog", "red fox", "school bus")
POSITIONS = {"a.jpg": 0, "b/ä.jpg": 1, "c.jpg": 4}
IMAGES = "5" * 64


def softmax(scores: Any) -> Any:
    raised = np.exp(np.asarray(scores, dtype=np.float32))
    return raised / raised.sum(axis=1, keepdims=True)


@st.composite
def tables(draw: st.DrawFn) -> Any:
    """Probabilities of few images and classes, from few values, so that many are equal."""
    n_images, n_classes = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    values = st.lists(st.integers(0, 3), min_size=n_classes, max_size=n_classes)
    return softmax(draw(st.lists(values, min_size=n_images, max_size=n_images)))


def all_pairs_sorted(table: Any, per_class: int, classes: list[int]) -> list[PseudoLabel]:
    """Gives away the most probable pair of image and class, again and again."""
    pairs = [(-float(table[i, c]), c, i) for i in range(len(table)) for c in classes]
    given: dict[int, list[PseudoLabel]] = {c: [] for c in sorted(classes)}
    taken: set[int] = set()
    for key, c, i in sorted(pairs):
        if i not in taken and len(given[c]) < per_class:
            taken.add(i)
            given[c].append(PseudoLabel(i, c, -key))
    return [one for found in given.values() for one in found]


@settings(max_examples=300)
@given(tables(), st.integers(1, 4), st.data())
def test_the_most_probable_are_chosen_as_from_all_pairs_sorted(
    table: Any, per_class: int, data: st.DataObject
) -> None:
    n_classes = table.shape[1]
    classes = data.draw(st.lists(st.sampled_from(range(n_classes)), unique=True, min_size=1))
    if len(table) < per_class * len(classes):
        with pytest.raises(DataError, match="unlabeled images"):
            most_probable(table, per_class, classes=classes)
        return
    chosen = most_probable(table, per_class, classes=classes)
    assert chosen == all_pairs_sorted(table, per_class, classes)
    assert len({one.row for one in chosen}) == len(chosen) == per_class * len(classes)


@given(tables(), st.integers(1, 4))
def test_the_predicted_are_chosen_as_one_by_one(table: Any, per_class: int) -> None:
    expected = []
    for c in range(table.shape[1]):
        own = [i for i, row in enumerate(table) if max(row) == row[c] and max(row) not in row[:c]]
        own.sort(key=lambda i: (-table[i, c], i))
        expected += [PseudoLabel(i, c, float(table[i, c])) for i in own[:per_class]]
    assert most_confident_predicted(table, per_class) == expected


def test_a_class_that_no_image_is_predicted_as_has_its_most_probable_images_or_none() -> None:
    table = softmax([[3, 0, 0], [2, 1, 0], [0, 0, 3], [0, 0, 2]])
    assert [one.row for one in most_probable(table, 1, classes=[1])] == [1]
    assert {one.label for one in most_confident_predicted(table, 4)} == {0, 2}


def test_fewer_images_than_the_classes_are_to_have_are_refused_with_what_would_do() -> None:
    table = softmax(np.zeros((7, 3)))
    with pytest.raises(
        DataError, match=r"are 7 .* 3 classes need 9\.\n.*set per_class to 2 or less"
    ):
        most_probable(table, 3, classes=range(3))
    with pytest.raises(DataError, match=r"need 3\.\n  Add images; labeled ones are not counted\.$"):
        most_probable(table[:2], 1, classes=range(3))


# Files


def pool_of(image_list: str = IMAGES) -> Any:
    return SimpleNamespace(list_hash=image_list, positions=POSITIONS)


def write(path: Path) -> Path:
    labels = [PseudoLabel(2, 0, 0.75), PseudoLabel(1, 2, 1.0)]
    made = {"method": "zeroshot", "made_by": "7" * 64}
    write_pseudo_labels(path, labels, pool_of(), class_names=NAMES, **made)
    return path


def read(path: Path, names: tuple[str, ...] = NAMES, image_list: str = IMAGES) -> dict[int, int]:
    return read_pseudo_labels(path, pool_of(image_list), class_names=names)


def test_a_file_is_lines_that_a_person_can_read(tmp_path: Path) -> None:
    lines = write(tmp_path / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0])["made_by"] == "7" * 64
    assert lines[1:] == [
        '{"image": "c.jpg", "class": "cat", "confidence": 0.75}',
        '{"image": "b/ä.jpg", "class": "red fox", "confidence": 1.0}',
    ]
    assert read(tmp_path / "labels.jsonl") == {4: 0, 1: 2}


def test_a_person_may_correct_classes_remove_lines_and_leave_blank_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl")
    first, second, _ = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f"{first}\n\n{second.replace('cat', 'school_bus')}\r\n", encoding="utf-8")
    assert read(path) == {4: 3}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"red fox"', '"red_foxx"', ':3: "red_foxx" is not a class name (nearest: "red fox").'),
        ('"red fox"', "2", ":3: class must be text, got 2."),
        ("b/ä.jpg", "b/a.jpg", ':3: data.unlabeled has no image "b/a.jpg".'),
        ("b/ä.jpg", "c.jpg", ':3: the image "c.jpg" appears twice, first in '),
        ('"confidence": 1.0', '"confidence": 1.5', ":3: confidence must be at most 1, got 1.5."),
        ('"confidence": 1.0', '"confidence": true', ":3: confidence must be a number, got true."),
        ('"confidence": 1.0', '"confidence": NaN', ":3: confidence must be a finite number, got"),
        (', "confidence": 1.0', "", ":3: confidence is missing.\n  Correct"),
        ('{"image": "b/ä.jpg", ', '["image", ', ":3: the line must be valid (Invalid JSON: "),
        ('"red fox", "confidence": 1.0}', '"red f', ":3: the line must be valid (Invalid JSON: "),
        ('{"format"', '{"Format"', ":1: Format is not a known key.\n  Did you mean format?"),
    ],
)
def test_what_is_wrong_in_a_line_is_said_with_its_number(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = write(tmp_path / "labels.jsonl")
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{message}")


def test_a_file_of_other_classes_or_images_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl")
    with pytest.raises(
        DataError, match="was made for another class list than this recipe's 4 names"
    ):
        read(path, names=(*NAMES[1:], NAMES[0]))
    with pytest.raises(DataError, match=r"for other images than the 3 of data\.unlabeled"):
        read(path, image_list="6" * 64)


def test_files_of_other_editors_are_read_alike_but_not_in_another_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl")
    expected, data = read(path), path.read_bytes()
    for other in (b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.rstrip(b"\n")):
        path.write_bytes(other)
        assert read(path) == expected
    path.write_bytes(data.decode().encode("latin-1"))
    with pytest.raises(DataError, match=r"\.jsonl:3: not UTF-8 \(byte 0xe4\)\.\n  Save it as UTF"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe", b"{}\n", b"[" * 10**5])
def test_what_is_no_file_of_pseudo_labels_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.jsonl"):
        read(path)


def test_a_file_without_labels_a_missing_one_and_a_folder_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.jsonl")
    path.write_text(path.read_text(encoding="utf-8").split("\n")[0], encoding="utf-8")
    with pytest.raises(DataError, match="holds no pseudo-label"):
        read(path)
    with pytest.raises(DataError, match="cannot be read: no such file"):
        read(tmp_path / "other.jsonl")
    with pytest.raises(DataError, match="cannot be read: is a directory"):
        read(tmp_path)
