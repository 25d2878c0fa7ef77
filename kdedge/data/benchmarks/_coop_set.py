"""A set in CoOp's layout: its published split file, or the set's own rule where that is missing."""

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
    """One set.

    Attributes:
        name: that of CoOp's config file, and of the file here.
        about: what it holds; the first line is its title.
        folder: its own below that of all sets, as CoOp's DATASETS.md names it.
        template: text around a class name, as in CoOp's trainers/zsclip.py: CUSTOM_TEMPLATES.
        license: terms of its images, one sentence.
        n_classes: of the published split.
        n_images: part (train, val or test) -> images of the published split.
        downloads: the files of the published set, without what only the set's own rule reads.
        image_root: folder below its own from which the split file's paths start; "" for its own.
        images: paths below its folder that hold the images.
        split_file: name of CoOp's file; None where CoOp takes the parts that the set itself has.
        own_split: makes a split by the set's own rule from what `own_reads` names.
        own_reads: paths below its folder.
    """

    name: str
    about: str | None
    folder: str
    template: str
    license: str
    n_classes: int
    n_images: Mapping[str, int]
    downloads: tuple[Download, ...]
    image_root: str
    images: tuple[str, ...]
    split_file: str | None
    own_split: Callable[[Path], Split]
    own_reads: tuple[str, ...]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Gives the names in label order.

        Args:
            root: folder of the benchmark sets.

        Raises:
            DataError: what tells the names is missing, or is not the published set.
        """
        return self._read(root, with_images=False).class_names

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> BenchmarkSource:
        """Lists the images of a part.

        Args:
            root: folder of the benchmark sets.
            part: train, val or test.
            class_names: in class-list order; used where `labeled`.
            labeled: labels are positions in `class_names`.

        Raises:
            DataError: the set is not there or not the published one, there is no such part, or the
                class list lacks some of the set's names.
        """
        split = self._read(root, with_images=True)
        images = root / self.folder / self.image_root
        source = open_part(images, split, part=part, class_names=class_names, labeled=labeled)
        if (
            part == "test"
            and self.split_file is not None
            and not self.has_split(root / self.folder)
        ):
            log.warning(
                "%s is not there, so the set's own rule divides the images: this is not CoOp's"
                " split, and accuracies do not compare with published ones.\n  To get it: %s.",
                root / self.folder / self.split_file,
                self._origin,
            )
        return source

    def has_split(self, folder: Path) -> bool:
        """Whether CoOp's file is in the set's folder."""
        return self.split_file is not None and (folder / self.split_file).exists()

    @property
    def _origin(self) -> str:
        """Where the file that decides the parts comes from."""
        gives = self.split_file or self.images[0]
        return next(describe(file) for file in self.downloads if file.gives == gives)

    def _read(self, root: Path, *, with_images: bool) -> Split:
        folder = root / self.folder
        is_split = self.has_split(folder)
        needed = (self.images if with_images else ()) + (() if is_split else self.own_reads)
        if not all((folder / path).exists() for path in needed):
            split_file = () if self.split_file is None else (self.split_file,)
            require(self.name, folder, (*self.images, *split_file), self.downloads)
        if is_split and self.split_file is not None:
            split, what = read_split(folder / self.split_file), str(folder / self.split_file)
        else:
            split, what = self.own_split(folder), f"{folder}, by the set's own rule,"
        check_counts(
            split,
            what=what,
            n_classes=self.n_classes,
            n_images=self.n_images,
            remedy=f"Get the published file: {self._origin}.",
        )
        return split
