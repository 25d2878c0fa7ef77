"""A set in CoOp's layout: with its published split file or, without it, a split of kdedge's."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._benchmark import Benchmark
from kdedge.data.benchmarks._coop_split import (
    Split,
    check_counts,
    check_rows,
    open_part,
    read_split,
)
from kdedge.data.benchmarks._origins import describe, is_there, nested, require
from kdedge.data.sources import FileSource, is_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoopSet(Benchmark):
    """One set.

    Attributes:
        image_root: folder, below the set's, that paths in the split file start at; "" for the
            set's.
        images: paths below its folder that hold the images.
        split_file: name of CoOp's file; None if CoOp uses the set's official parts.
        own_split: makes kdedge's split of the set, from the files of `own_reads`.
        own_reads: paths below the set's folder.
    """

    image_root: str
    images: tuple[str, ...]
    split_file: str | None
    own_split: Callable[[Path], Split]
    own_reads: tuple[str, ...]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """See `Benchmark.class_names`."""
        return self._read(root, with_images=False).class_names

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """See `Benchmark.open_source`."""
        split = self._read(root, with_images=True)
        folder = root / self.folder
        self._refuse_nested(folder, split)
        source = open_part(
            folder / self.image_root, split, part=part, class_names=class_names, labeled=labeled
        )
        if part == "test" and not self.has_published_parts(folder):
            log.warning(
                "%s is missing, so kdedge splits the images itself: this is not CoOp's split. Do"
                " not compare accuracies with published ones.\n  To get it: %s.",
                folder / str(self.split_file),
                self._origin,
            )
        return source

    def has_published_parts(self, folder: Path) -> bool:
        """See `Benchmark.has_published_parts`."""
        return self.split_file is None or self.has_split(folder)

    def has_split(self, folder: Path) -> bool:
        """Whether CoOp's file is in the set's folder."""
        return self.split_file is not None and is_there(folder / self.split_file)

    def read_split(self, folder: Path) -> Split:
        """Reads CoOp's split file in the set's folder.

        Raises:
            DataError: it is not a split file.
        """
        file = folder / str(self.split_file)
        root = shlex.quote(str(folder.parent))
        remedy = (
            f"Remove it and run: kdedge data fetch {self.name} --data {root}\n"
            f"  Or put the published file in its place: {self._origin}."
        )
        return read_split(file, remedy=remedy)

    def _refuse_nested(self, folder: Path, split: Split) -> None:
        """Raises DataError where an archive was unpacked into the folder that it makes."""
        first = next((folder / self.image_root / path for path, _ in split.parts["train"]), None)
        if first is None or is_file(first):
            return
        for outer in (folder / path for path in self.images):
            inner = outer / outer.name
            if first.is_relative_to(outer) and is_file(inner / first.relative_to(outer)):
                raise nested(outer, inner)

    @property
    def _origin(self) -> str:
        """Where to get the file that defines the parts."""
        gives = self.split_file or self.images[0]
        return next(describe(file) for file in self.downloads if file.gives == gives)

    def _read(self, root: Path, *, with_images: bool) -> Split:
        folder = root / self.folder
        is_split = self.has_split(folder)
        needed = (self.images if with_images else ()) + (() if is_split else self.own_reads)
        if not all(is_there(folder / path) for path in needed):
            split_file = () if self.split_file is None else (self.split_file,)
            require(self.name, folder, (*self.images, *split_file), self.downloads)
        if is_split:
            split, what = self.read_split(folder), str(folder / str(self.split_file))
        else:
            split, what = self.own_split(folder), f"{folder}, split by kdedge,"
            check_rows(split, what=str(folder))
        check_counts(
            split,
            what=what,
            n_classes=self.n_classes,
            n_images=self.n_images,
            remedy=f"Get the published file: {self._origin}.",
        )
        return split
