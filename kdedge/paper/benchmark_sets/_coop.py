"""Sets in CoOp's layout: with a split file, and FGVC-Aircraft with its own lists.

A split file, which the published tables use (arXiv:2109.01134), is a JSON object with `train`,
`val` and `test`, each a list of `[path below the image folder, label, class name]`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdedge.errors import DataError
from kdedge.paper.benchmark_sets._benchmark import Benchmark, ImageList, read_lines, unexpected
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
    if not set(PARTS) <= set(listed):
        raise DataError(
            f"{path} is not a split file: expected the keys train, val and test.\n  {remedy}"
        )
    names: dict[int, str] = {}
    parts: dict[str, tuple[tuple[str, int], ...]] = {}
    for part in PARTS:
        rows = []
        for number, (image, label, name) in enumerate(listed[part]):
            where = f"{path}: {part}[{number}]"
            _check_path(image, where, remedy=remedy)
            if names.setdefault(label, name) != name or not name.isprintable():
                conflict = f"label {label} is {name!r}, was {names[label]!r} before"
                raise DataError(f"{where}: {conflict}.\n  {remedy}")
            rows.append((PurePosixPath(image).as_posix(), label))
        parts[part] = tuple(rows)
    if sorted(names) != list(range(len(names))) or len(set(names.values())) < len(names):
        raise DataError(
            f"{path} has {len(names)} labels from {min(names)} to {max(names)}, expected 0 to"
            f" {len(names) - 1}, each with a name of its own.\n  {remedy}"
        )
    return CoopSplit(tuple(names[label] for label in range(len(names))), parts)


def _check_path(text: str, where: str, *, remedy: str) -> None:
    """Raises DataError for a path that leaves the image folder, or that no file can have."""
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or "\0" in text or "\\" in text:
        raise DataError(f"{where}: {text!r:.200} is outside of the image folder.\n  {remedy}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {text!r:.200} cannot be a file name.\n  {remedy}") from error


@dataclass(frozen=True)
class CoopSet(Benchmark):
    """A benchmark set with CoOp's split file.

    Attributes:
        image_root: folder that paths in the split file start at, relative to the set's folder; ""
            for the set's folder.
    """

    image_root: str

    @property
    def lists(self) -> list[str]:
        """The set's files that list classes and images: for most sets CoOp's split file."""
        return [file.path for file in self.downloads if not file.has_images]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """The names in the order of the split files' labels."""
        return self._read(root, self.lists).class_names

    def list_images(self, root: Path, part: str) -> ImageList:
        """The images of a part, in the split file's order."""
        if part not in self.n_images:
            raise DataError(f"{part} is not a part; expected one of {', '.join(self.n_images)}.")
        split = self._read(root, [file.path for file in self.downloads])
        return ImageList(root / self.folder / self.image_root, split.class_names, split.parts[part])

    def read_split(self, folder: Path) -> CoopSplit:
        """Reads the parts from CoOp's split file in the set's folder.

        Raises:
            DataError: the file is not a split file.
        """
        return read_split(folder / self.lists[0], remedy=self._remedy)

    @property
    def _remedy(self) -> str:
        return f"Get the published file: {self.downloads[-1].by_hand}."

    def _read(self, root: Path, needed: Sequence[str]) -> CoopSplit:
        """Reads the parts, and checks that they have the published numbers of images."""
        self.require(root, needed)
        folder = root / self.folder
        split = self.read_split(folder)
        counts = {part: len(rows) for part, rows in split.parts.items()}
        if counts != self.n_images or len(split.class_names) != self.n_classes:
            raise DataError(
                f"{folder / self.lists[0]} has {len(split.class_names)} classes and {counts}"
                f" images, the published split {self.n_classes} and {dict(self.n_images)}.\n"
                f"  {self._remedy}"
            )
        return split


class AircraftSet(CoopSet):
    """FGVC-Aircraft: a list of class names, and for each part a list of images with their names."""

    def read_split(self, folder: Path) -> CoopSplit:
        """Reads the official parts.

        Raises:
            DataError: a list differs from the published one.
        """
        variants, *lists = self.lists
        names = read_lines(folder / variants)
        labels = {name: label for label, name in enumerate(names)}
        parts = {}
        for part, file in zip(PARTS, lists, strict=True):
            rows = []
            for line in read_lines(folder / file):
                image, _, name = line.partition(" ")
                if name not in labels:
                    raise unexpected(folder / file, line, f"an image and a line of {variants}")
                _check_path(f"{image}.jpg", str(folder / file), remedy=self._remedy)
                rows.append((f"{image}.jpg", labels[name]))
            parts[part] = tuple(rows)
        return CoopSplit(tuple(names), parts)
