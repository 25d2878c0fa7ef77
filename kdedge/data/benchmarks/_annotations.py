"""Reads the annotation files of sets: lines of text, MATLAB arrays."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdedge.data.sources import IMAGE_EXTENSIONS
from kdedge.errors import DataError, MissingPackage


def read_lines(path: Path) -> list[str]:
    """Returns the stripped, non-empty lines of a UTF-8 text file.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise DataError(
            f"{path} cannot be read: {str(reason).lower()}.\n  Get the set's file again."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def unexpected(path: Path, got: str, expected: str) -> DataError:
    """Returns the error for an annotation that differs from the published files."""
    return DataError(f"{path} has {got!r:.120}, expected {expected}.\n  Get the set's file again.")


@contextlib.contextmanager
def well_formed(path: Path) -> Iterator[None]:
    """Context for parsing a file's values: parser errors become a DataError about the file.

    Raises:
        DataError: a value is missing, or of another kind than in the published file.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{path} has other values than the published file: {type(error).__name__},"
            f" {error!s:.80}.\n  Get the set's file again."
        ) from error


def read_mat(path: Path, name: str) -> Any:
    """Returns a variable of a MATLAB file, an array without dimensions of length 1.

    Raises:
        MissingPackage: scipy, which reads them, is not installed.
        DataError: it cannot be read, is no such file, or has no variable of that name.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise MissingPackage(
            "scipy", extra="data", purpose=f"Reading {path.name}, as there is no split file,"
        ) from error
    # Seen on damaged files
    damaged = (
        *(OSError, ValueError, TypeError, LookupError, ArithmeticError, NameError),
        *(NotImplementedError, zlib.error, MatReadError),
    )
    try:
        values = loadmat(path, squeeze_me=True)
    except damaged as error:
        raise DataError(
            f"{path} cannot be read as a MATLAB file: {error}.\n  Get the set's file again."
        ) from error
    with well_formed(path):
        return values[name]


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
            f"{folder} cannot be listed: {str(error.strerror).lower()}.\n"
            "  Get the set's images again."
        ) from error


_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
