"""What a set's folder has, and the error for what it lacks."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from kdedge.data.benchmarks._benchmark import MIRROR, Download, describe
from kdedge.data.sources import IMAGE_EXTENSIONS
from kdedge.errors import DataError, os_reason
from kdedge.files import read_text

_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)


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
        f"  All sets but ImageNet are also at {MIRROR}: one zip per set; unpack it in"
        f" {folder.parent}.\n"
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
