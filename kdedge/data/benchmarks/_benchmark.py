"""The interface of a benchmark set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks._download import Download
from kdedge.data.sources import FileSource


@dataclass(frozen=True)
class Benchmark(ABC):
    """One set.

    Attributes:
        name: name of CoOp's config file and of the set's file here.
        about: description; the first line is its title.
        folder: its folder below the root of all sets, as in CoOp's DATASETS.md.
        template: text with `{}` for the class name, from CoOp's trainers/zsclip.py
            (CUSTOM_TEMPLATES).
        license: terms of its images, one sentence.
        n_classes: classes of the published split.
        n_images: part (train, val or test) -> images of the published split.
        downloads: files of the published set, without those that only kdedge's own split reads.
    """

    name: str
    about: str | None
    folder: str
    template: str
    license: str
    n_classes: int
    n_images: Mapping[str, int]
    downloads: tuple[Download, ...]

    def has_published_parts(self, folder: Path) -> bool:
        """Whether its parts are those of the published tables; otherwise kdedge splits the images.

        Args:
            folder: the set's folder.
        """
        return True

    @abstractmethod
    def class_names(self, root: Path) -> tuple[str, ...]:
        """Returns the names in label order.

        Args:
            root: folder of the benchmark sets.

        Raises:
            DataError: the file of class names is missing, or differs from the published one.
            MissingPackage: ImageNet's list of names is missing, and so is open_clip.
        """

    @abstractmethod
    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """Lists the images of a part.

        Args:
            root: folder of the benchmark sets.
            part: train, val or test.
            class_names: in class-list order; used where `labeled`.
            labeled: labels are positions in `class_names`.

        Raises:
            DataError: the set is missing or differs from the published one, there is no such part,
                or the class list lacks some of the set's names.
            MissingPackage: ImageNet's list of names is missing, and so is open_clip.
        """
