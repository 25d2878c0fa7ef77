"""Reads the sets' own annotation files: lines of text, MATLAB arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.data.sources._protocol import IMAGE_EXTENSIONS
from kdedge.errors import DataError, MissingPackage


def read_lines(path: Path) -> list[str]:
    """Gives the lines of a UTF-8 text file, without blanks around them and without empty ones.

    Raises:
        DataError: it cannot be read, or is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise DataError(
            f"{path} cannot be read: {str(reason).lower()}.\n  Get the set's file once more."
        ) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def unexpected(path: Path, got: str, expected: str) -> DataError:
    """Gives the error for an annotation that the set's published files do not have."""
    return DataError(
        f"{path} has {got!r:.120}, expected {expected}.\n  Get the set's file once more."
    )


def read_mat(path: Path) -> dict[str, Any]:
    """Gives the variables of a MATLAB file, arrays without dimensions of length 1.

    Raises:
        MissingPackage: scipy, which reads them, is not installed.
        DataError: it cannot be read, or is no such file.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingPackage(
            "scipy", extra="data", purpose=f"Reading {path.name}, as there is no split file,"
        ) from error
    try:
        values: dict[str, Any] = loadmat(path, squeeze_me=True)
    except (OSError, ValueError, NotImplementedError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read as a MATLAB file: {error}.\n  Get the set's file once more."
        ) from error
    return values


def folders_in(folder: Path) -> list[str]:
    """Gives the names of the folders in a folder, sorted, without hidden ones."""
    names = (path.name for path in folder.iterdir() if path.is_dir())
    return sorted(name for name in names if not name.startswith("."))


def images_in(folder: Path) -> list[str]:
    """Gives the names of the image files in a folder, sorted, without hidden ones."""
    names = (path.name for path in folder.iterdir() if not path.name.startswith("."))
    return sorted(name for name in names if name.lower().endswith(_SUFFIXES))


_SUFFIXES = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
