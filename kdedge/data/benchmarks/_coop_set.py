"""A set that CoOp split: its published split file, or the set's own rule where that is missing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._coop_split import (
    BenchmarkSource,
    Split,
    check_counts,
    open_part,
    read_split,
)
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import describe, require

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoopSet:
    """One set on this machine.

    Attributes:
        folder: of the set.
        image_root: folder below it from which the split file's paths start; "" for the set's own.
        images: paths below the set's folder that hold the images.
        split_file: name of CoOp's file.
        downloads: the set's.
        n_classes: of the published split.
        n_images: part -> images of the published split.
        own_split: makes a split by the set's own rule from what `own_reads` names.
        own_reads: paths below the set's folder.
    """

    folder: Path
    image_root: str
    images: tuple[str, ...]
    split_file: str
    downloads: Sequence[Download]
    n_classes: int
    n_images: Mapping[str, int]
    own_split: Callable[[Path], Split]
    own_reads: tuple[str, ...]

    def class_names(self) -> tuple[str, ...]:
        """Gives the names in label order.

        Raises:
            DataError: what tells them is missing, or is not the published set.
        """
        return self._read(with_images=False).class_names

    def open(self, part: str, *, class_names: Sequence[str], labeled: bool) -> BenchmarkSource:
        """Lists the images of a part.

        Args:
            part: train, val or test.
            class_names: in class-list order; used where `labeled`.
            labeled: labels are positions in `class_names`.

        Raises:
            DataError: the set is not there or not the published one, there is no such part, or the
                class list lacks some of the set's names.
        """
        split = self._read(with_images=True)
        root = self.folder / self.image_root
        source = open_part(root, split, part=part, class_names=class_names, labeled=labeled)
        if part == "test" and not self._split_path.exists():
            log.warning(
                "%s is not there, so the set's own rule divides the images: this is not CoOp's"
                " split, and accuracies do not compare with published ones.\n  To get it: %s.",
                self._split_path,
                self._split_origin,
            )
        return source

    @property
    def _split_path(self) -> Path:
        return self.folder / self.split_file

    @property
    def _split_origin(self) -> str:
        return next(describe(file) for file in self.downloads if file.gives == self.split_file)

    def _read(self, *, with_images: bool) -> Split:
        is_published = self._split_path.exists()
        needed = (self.images if with_images else ()) + (() if is_published else self.own_reads)
        if not all((self.folder / path).exists() for path in needed):
            require(self.folder, (*self.images, self.split_file), self.downloads)
        split = read_split(self._split_path) if is_published else self.own_split(self.folder)
        what = self._split_path if is_published else f"{self.folder}, by the set's own rule,"
        check_counts(
            split,
            what=str(what),
            n_classes=self.n_classes,
            n_images=self.n_images,
            remedy=f"Get the published file: {self._split_origin}.",
        )
        return split
