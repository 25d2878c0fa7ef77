"""The interface of a benchmark set, its files' addresses, and what its folder has and lacks."""

from __future__ import annotations

import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.sources import IMAGE_EXTENSIONS, FileSource
from kdedge.errors import DataError, os_reason
from kdedge.files import read_text

MIRROR = "zhengli97/prompt_learning_dataset"
"""Repository on the Hugging Face Hub: one zip per set with its split file, but not ImageNet
(PromptKD repository, DATASETS.md)."""

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


@dataclass(frozen=True)
class HubArchive:
    """An archive on the Hugging Face Hub that has the files of a benchmark set.

    Attributes:
        name: file name in the repository and in the set's folder.
        sha256: of the archive, in hex; None if unknown.
        top: folder in the archive whose content is unpacked; None for the set's missing files
            alone, in whichever folder of the archive they are.
        repository: `OWNER/NAME`.
        commit: of the repository; another one may have other files.
    """

    name: str
    sha256: str | None = None
    top: str | None = None
    repository: str = MIRROR
    commit: str = "ceb3112337fb6e1bf71534e355ca5569b63f19a6"

    @property
    def url(self) -> str:
        """Its address in a browser."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.commit}/{self.name}"


@dataclass(frozen=True)
class Download:
    """A file of a benchmark set.

    Attributes:
        name: file name in the set's folder.
        urls: official addresses, for a download by hand; empty if its terms require more.
        gives: a path below the set's folder that exists once the file is complete, or unpacked.
        manual: instructions for a manual download, one sentence; None if there are `urls`.
        sha256: of the file, in hex; None if unknown.
        n_bytes: its size; None if unknown.
        into: folder below the set's, into which it is unpacked; "" for the set's own.
        top: folder in the archive whose content is unpacked, and nothing else; "" for all of it.
    """

    name: str
    urls: tuple[str, ...]
    gives: str
    manual: str | None = None
    sha256: str | None = None
    n_bytes: int | None = None
    into: str = ""
    top: str = ""

    @property
    def is_archive(self) -> bool:
        """Whether it is unpacked."""
        return self.name.endswith((".zip", ".tar", ".tar.gz", ".tgz"))


@dataclass(frozen=True)
class Benchmark(ABC):
    """One set.

    Attributes:
        name: as in CoOp's config file.
        about: its title, one sentence.
        folder: its folder below the root of all sets, as in CoOp's DATASETS.md.
        template: text with `{}` for the class name, from CoOp's trainers/zsclip.py
            (CUSTOM_TEMPLATES).
        license: terms of its images, one sentence.
        n_classes: classes of the published split.
        n_images: part (train, val or test) -> images of the published split.
        downloads: files of the published set; the last has the parts or the class names.
        mirror: what `kdedge data fetch` downloads; None for a set that the Hub does not have.
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


def google_drive(file_id: str) -> str:
    """Returns a Google Drive file's download address that skips the warning page of large files."""
    return f"https://drive.usercontent.google.com/download?export=download&confirm=t&id={file_id}"


def describe(download: Download) -> str:
    """Describes how to get a file by hand, without a full stop."""
    if download.manual is not None:
        return download.manual.rstrip(".")
    addresses = " or ".join(download.urls)
    if not download.is_archive:
        return addresses
    what = f"the content of {download.top} in {download.name}" if download.top else download.name
    return f"Unpack {what} from {addresses}"


class MissingPartsError(DataError):
    """Parts of a set are missing from its folder."""


def is_there(path: Path) -> bool:
    """Whether a path exists.

    Raises:
        DataError: its folder may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {os_reason(error)}.\n"
            "  Allow your user to read the folders of the sets, or name other folders."
        ) from error


def nested(outer: Path, inner: Path) -> DataError:
    """Gives the error for a folder whose content is in a folder of its own name inside it."""
    return DataError(
        f"{outer} is there once more inside itself: its content is in {inner}.\n"
        f"  Move it one folder up, into {outer}."
    )


def require(name: str, folder: Path, needed: Iterable[str], downloads: Sequence[Download]) -> None:
    """Checks that parts of a set are in its folder.

    Args:
        name: of the set.
        folder: its own.
        needed: paths below it.
        downloads: all of the set's.

    Raises:
        MissingPartsError: naming each missing one, where to get it, and where to put it.
        DataError: they are in a folder of the set's name inside its folder.
    """
    needed = list(dict.fromkeys(needed))
    missing = [path for path in needed if not is_there(folder / path)]
    if not missing:
        return
    inner = folder / folder.name
    if all(is_there(inner / path) for path in needed):
        raise nested(folder, inner)
    origins = {download.gives: describe(download) for download in downloads}
    lines = "\n".join(f"  {folder / path}: {origins[path]}" for path in missing)
    raise MissingPartsError(
        f"{folder} lacks {len(missing)} of {len(needed)} parts of the set. To get them:\n"
        f"  kdedge data fetch {name} --data {shlex.quote(str(folder.parent))}\n"
        f"  Or by hand:\n{lines}\n"
        f"  All sets but ImageNet are also at https://huggingface.co/{MIRROR}: one zip per set;"
        f" unpack it in {folder.parent}.\n"
        "  Or set data.root, or KDEDGE_DATA, to the folder that holds the sets."
    )


def read_lines(path: Path) -> list[str]:
    """Returns the stripped, non-empty lines of a UTF-8 text file.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    text = read_text(path, remedy="Get the set's file again.")
    return [line.strip() for line in text.splitlines() if line.strip()]


def unexpected(path: Path, got: str, expected: str) -> DataError:
    """Returns the error for an annotation that differs from the published files."""
    return DataError(f"{path} has {got!r:.120}, expected {expected}.\n  Get the set's file again.")


def folders_in(folder: Path) -> list[str]:
    """Returns the sorted names of the folders in a folder, without hidden ones.

    Raises:
        DataError: it cannot be listed.
    """
    return sorted(path.name for path in _listed(folder) if path.is_dir())


def images_in(folder: Path) -> list[str]:
    """Returns the sorted names of the image files in a folder, without hidden ones.

    Raises:
        DataError: it cannot be listed.
    """
    return sorted(path.name for path in _listed(folder) if path.name.lower().endswith(_SUFFIXES))


def _listed(folder: Path) -> list[Path]:
    """The entries of a folder that are not hidden."""
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed: {os_reason(error)}.\n  Get the set's images again."
        ) from error
