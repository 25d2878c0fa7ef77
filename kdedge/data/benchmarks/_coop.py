"""Sets in CoOp's layout: with its split file, and FGVC-Aircraft with the lists of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._benchmark import Benchmark, read_lines, unexpected
from kdedge.data.benchmarks._coop_split import (
    PARTS,
    CoopSplit,
    check_path,
    open_part,
    read_split,
)
from kdedge.data.sources import FileSource
from kdedge.errors import DataError


@dataclass(frozen=True)
class CoopSet(Benchmark):
    """One set.

    Attributes:
        image_root: folder, below the set's, that paths in the split file start at; "" for the
            set's.
    """

    image_root: str

    @property
    def lists(self) -> list[str]:
        """Files below its folder that name classes and images: CoOp's split file."""
        return [file.path for file in self.downloads if not file.has_images]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """See `Benchmark.class_names`."""
        return self._read(root, self.lists).class_names

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """See `Benchmark.open_source`."""
        split = self._read(root, [file.path for file in self.downloads])
        folder = root / self.folder / self.image_root
        return open_part(folder, split, part=part, class_names=class_names, labeled=labeled)

    def read_split(self, folder: Path) -> CoopSplit:
        """Reads the parts from CoOp's split file in the set's folder.

        Raises:
            DataError: it is not a split file.
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
    """FGVC-Aircraft, whose lists are the class names and then, for each part, image and name."""

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
                check_path(f"{image}.jpg", str(folder / file))
                rows.append((f"{image}.jpg", labels[name]))
            parts[part] = tuple(rows)
        return CoopSplit(tuple(names), parts)
