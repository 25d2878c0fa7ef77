"""The interface of a benchmark set, the addresses of its files, and the check for missing files."""

from __future__ import annotations

import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kdedge.data.sources import FileSource, Item, LabelIndex
from kdedge.errors import DataError
from kdedge.files import read_text
from kdedge.messages import name_some

MIRROR = "zhengli97/prompt_learning_dataset"
"""Repository on the Hugging Face Hub: one zip per set with its split file, but not ImageNet
(PromptKD repository, DATASETS.md)."""


@dataclass(frozen=True)
class HubArchive:
    """A zip file on the Hugging Face Hub that has the files of a benchmark set.

    Attributes:
        name: file name in the repository and in the set's folder.
        sha256: hash of the archive, in hex; None if unknown.
        repository: `OWNER/NAME`.
        commit: commit of the repository; another commit may have other files.
    """

    name: str
    sha256: str | None = None
    repository: str = MIRROR
    commit: str = "ceb3112337fb6e1bf71534e355ca5569b63f19a6"

    @property
    def url(self) -> str:
        """Its address in a browser."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.commit}/{self.name}"


@dataclass(frozen=True)
class Download:
    """A file of a benchmark set, or a folder of its images.

    Attributes:
        path: path of the file or folder, below the set's folder.
        by_hand: how to get it without the Hub's archive: an instruction with the official
            addresses, or the address alone.
        sha256: hash of the file, in hex; None if unknown.
    """

    path: str
    by_hand: str
    sha256: str | None = None

    @property
    def has_images(self) -> bool:
        """Whether it is a folder of images rather than a list of images or class names."""
        return not self.path.endswith((".json", ".txt"))


class ImageList(NamedTuple):
    """Paths and labels of the images of a part.

    Attributes:
        folder: folder that the paths start at.
        class_names: class names of the set, in label order.
        rows: path and label of each image.
    """

    folder: Path
    class_names: tuple[str, ...]
    rows: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark set.

    Attributes:
        name: the set's name, as in CoOp's config file.
        about: its title, one sentence.
        folder: its folder below the root of all sets, as in CoOp's DATASETS.md.
        template: text with `{}` for the class name, from CoOp's trainers/zsclip.py
            (CUSTOM_TEMPLATES).
        license: terms of its images, one sentence.
        n_classes: classes of the published split.
        n_images: part (train, val or test) -> images of the published split.
        downloads: files of the published set; the last has the parts or the class names.
        mirror: the archive that `kdedge data fetch` downloads; None if the Hub does not have it.
    """

    name: str
    about: str
    folder: str
    template: str
    license: str
    n_classes: int
    n_images: Mapping[str, int]
    downloads: tuple[Download, ...]
    mirror: HubArchive | None

    def missing(self, root: Path) -> tuple[Download, ...]:
        """Returns the files that are not in the set's folder."""
        folder = root / self.folder
        return tuple(file for file in self.downloads if not exists(folder / file.path))

    def require(self, root: Path, needed: Iterable[str]) -> None:
        """Checks that files are in the set's folder.

        Args:
            root: folder of the benchmark sets.
            needed: paths below the set's folder.

        Raises:
            MissingPartsError: a file is missing. The message lists all missing files of the set,
                where to get them, and where to put them.
        """
        folder = root / self.folder
        if all(exists(folder / path) for path in needed):
            return
        missing = self.missing(root)
        raise MissingPartsError(
            f"{folder} lacks {len(missing)} of {len(self.downloads)} parts of the set. To get"
            " them:\n"
            f"  kdedge data fetch {self.name} --data {shlex.quote(str(root))}\n"
            f"  Or by hand:\n{by_hand(folder, missing)}\n"
            f"  All sets but ImageNet are also at https://huggingface.co/{MIRROR}: one zip per set;"
            f" unpack it in {root}.\n"
            "  Or set data.root, or KDEDGE_DATA, to the folder that holds the sets."
        )

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
    def list_images(self, root: Path, part: str) -> ImageList:
        """Lists the images of a part.

        Args:
            root: folder of the benchmark sets.
            part: train, val or test.

        Raises:
            DataError: the set is missing or differs from the published one, or there is no such
                part.
            MissingPackage: ImageNet's list of names is missing, and so is open_clip.
        """

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> FileSource:
        """Opens a part; the keys of its images are their paths.

        Args:
            root: folder of the benchmark sets.
            part: train, val or test.
            class_names: in class-list order; used where `labeled`.
            labeled: labels are positions in `class_names`.

        Raises:
            DataError: as in `list_images`, or the class list lacks some of the set's names.
            MissingPackage: as in `list_images`.
        """
        listed = self.list_images(root, part)
        labels: list[int | None] = [None] * len(listed.rows)
        if labeled:
            index = LabelIndex(class_names)
            positions = {name: index.find(name) for name in listed.class_names}
            unknown = [name for name, position in positions.items() if position is None]
            if unknown:
                raise DataError(
                    f"the class list lacks {len(unknown)} of the benchmark set's {len(positions)}"
                    f" class names: {name_some(unknown)}.\n"
                    "  Set classes to the benchmark set, so that both have the same names."
                )
            labels = [positions[listed.class_names[label]] for _, label in listed.rows]
        names = [path for path, _ in listed.rows]
        return FileSource(listed.folder, names, list(map(Item, names, labels)))


class MissingPartsError(DataError):
    """Parts of a set are missing from its folder."""


def exists(path: Path) -> bool:
    """Whether there is a file or folder; False if that cannot be determined."""
    return os.path.exists(path)  # noqa: PTH110 - raises nothing


def by_hand(folder: Path, downloads: Iterable[Download]) -> str:
    """Returns a line for each file of a set: where it has to be and how to get it."""
    return "\n".join(f"  {folder / file.path}: {file.by_hand}" for file in downloads)


def read_lines(path: Path) -> list[str]:
    """Returns the stripped, non-empty lines of a UTF-8 text file.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    text = read_text(path, remedy="Get the set's file again.")
    return [line.strip() for line in text.splitlines() if line.strip()]


def unexpected(path: Path, got: str, expected: str) -> DataError:
    """Returns the error for an annotation that differs from the published files."""
    return DataError(f"{path} has {got!r:.120}, expected {expected}.\n  Get the set's file again.")
