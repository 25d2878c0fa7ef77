"""URLs of the sets' files, and the error for missing files."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdedge.data.benchmarks._download import Download
from kdedge.errors import DataError

MIRROR = "https://huggingface.co/zhengli97/prompt_learning_dataset"
"""One zip per set with its split file, but not ImageNet (PromptKD repository, DATASETS.md)."""

_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="


class MissingPartsError(DataError):
    """Parts of a set are missing from its folder."""


def google_drive(file_id: str) -> str:
    """Returns a Google Drive file's download address that skips the warning page of large files."""
    return f"{_DRIVE}{file_id}"


def mirror(
    name: str,
    gives: str,
    *,
    top: str | None = None,
    sha256: str | None = None,
    n_bytes: int | None = None,
) -> Download:
    """Returns a set's zip in the mirror, for one part of it.

    Args:
        name: of the zip.
        gives: see `Download`, as all others.
        top: None takes `gives` alone, wherever it is in the zip.
        sha256: as the mirror's page has it.
        n_bytes: as above.
    """
    return Download(
        name=name,
        urls=(f"{MIRROR}/resolve/main/{name}",),
        gives=gives,
        sha256=sha256,
        n_bytes=n_bytes,
        unpack="zip",
        top=top,
    )


def describe(download: Download) -> str:
    """Describes how to get a file, without a full stop."""
    if download.manual is not None:
        return download.manual.rstrip(".")
    url = download.urls[0]
    what = f"the content of {download.top} in {download.name}" if download.top else download.name
    if url.startswith(_DRIVE):
        origin = f"Google Drive file {url.removeprefix(_DRIVE)}"
        return origin if download.unpack is None else f"Unpack {what}, {origin}"
    return url if download.unpack is None else f"Unpack {what} from {url}"


def is_there(path: Path) -> bool:
    """Whether a path exists.

    Raises:
        DataError: its folder may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {str(error.strerror).lower()}.\n"
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
        f"  All sets but ImageNet are also at {MIRROR}: one zip per set; unpack it in"
        f" {folder.parent}.\n"
        "  Or set data.root, or KDEDGE_DATA, to the folder that holds the sets."
    )
