"""Reads CoOp's split files, which the published tables use (arXiv:2109.01134).

A split file is a JSON object with `train`, `val` and `test`, each a list of
`[path below the image folder, label, class name]`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdedge.data.sources import FileSource, Item, LabelIndex, name_some
from kdedge.errors import DataError
from kdedge.records.record import read_record

PARTS = ("train", "val", "test")
_FILE = dict[str, tuple[tuple[str, int, str], ...]]


@dataclass(frozen=True)
class CoopSplit:
    """A split file's contents.

    Attributes:
        class_names: in label order.
        parts: part -> (relative path, label) in the file's order.
    """

    class_names: tuple[str, ...]
    parts: Mapping[str, tuple[tuple[str, int], ...]]


def read_split(path: Path, *, remedy: str) -> CoopSplit:
    """Reads and checks a split file.

    Args:
        path: the file.
        remedy: advice for the message, one sentence.

    Raises:
        DataError: not a split file; a path leaves the image folder; labels are not 0 to n - 1; a
            label has two names or a name two labels.
    """
    listed = read_record(_FILE, path, remedy=remedy)
    try:
        return _checked(path, listed)
    except DataError as error:
        raise DataError(f"{error}\n  {remedy}") from error


def _checked(path: Path, listed: Mapping[str, Sequence[tuple[str, int, str]]]) -> CoopSplit:
    if not set(PARTS) <= set(listed):
        raise DataError(f"{path} is not a split file: expected the keys train, val and test.")
    names: dict[int, str] = {}
    parts: dict[str, tuple[tuple[str, int], ...]] = {}
    for part in PARTS:
        rows = []
        for number, (image, label, name) in enumerate(listed[part]):
            where = f"{path}: {part}[{number}]"
            check_path(image, where)
            if names.setdefault(label, name) != name or not name.isprintable():
                raise DataError(f"{where}: label {label} is {name!r}, was {names[label]!r} before.")
            rows.append((PurePosixPath(image).as_posix(), label))
        parts[part] = tuple(rows)
    if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names):
        raise DataError(
            f"{path} has {len(names)} labels from {min(names)} to {max(names)}, expected 0 to"
            f" {len(names) - 1}, each with a name of its own."
        )
    return CoopSplit(tuple(names[label] for label in range(len(names))), parts)


def check_path(text: str, where: str) -> None:
    """Raises DataError for a path that leaves the image folder, or that no file can have."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text or "\\" in text:
        raise DataError(f"{where}: {text!r:.200} is outside of the image folder.")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {text!r:.200} cannot be a file name.") from error


def open_part(
    folder: Path, split: CoopSplit, *, part: str, class_names: Sequence[str], labeled: bool
) -> FileSource:
    """Returns one part of a set, with labels as positions in `class_names`.

    Images are in the split file's order; their keys are paths relative to the image folder.

    Raises:
        DataError: no such part, or the class list lacks the set's class names.
    """
    if part not in split.parts:
        raise DataError(f"{part} is not a part; expected one of {', '.join(split.parts)}.")
    rows = split.parts[part]
    names = [relative for relative, _ in rows]
    if not labeled:
        return FileSource(folder, names, [Item(name, None) for name in names])
    index = LabelIndex(class_names)
    positions = [index.find(name) for name in split.class_names]
    unknown = [
        name for name, place in zip(split.class_names, positions, strict=True) if place is None
    ]
    if unknown:
        raise DataError(
            f"the class list lacks {len(unknown)} of the benchmark set's {len(positions)} class"
            f" names: {name_some(unknown)}.\n"
            "  Set classes to the benchmark set, so that both have the same names."
        )
    items = [Item(relative, positions[label]) for relative, label in rows]
    return FileSource(folder, names, items)
