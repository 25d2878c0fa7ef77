"""A CSV file that names images, and their classes where there are labels: `path[,label]`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from kdedge.data.sources._labels import LabelIndex
from kdedge.data.sources._protocol import FileSource, Item, is_file, printable
from kdedge.errors import DataError

_MAX_NAMED = 5


def open_source(path: Path, *, class_names: Sequence[str], labeled: bool) -> FileSource:
    """Reads a list of images, in the order of its rows; the keys are the paths in it.

    Args:
        path: CSV file in UTF-8. A first row whose first field is `path` is a heading. Paths are
            relative to the file's folder; they may lead anywhere, since the list is the user's own.
        class_names: in class-list order; used where `labeled`.
        labeled: the second field is needed: a class name (underscore counts as a space) or, where
            it is none, a position in the class list from 0.

    Raises:
        DataError: no such file, not CSV, a row that is not understood, missing files, no image.
    """
    rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path} names no images.\n  Write one image path a line.")
    paths = [path.parent / fields[0] for _, fields in rows]
    missing = [
        f"line {line}: {printable(fields[0])}"
        for (line, fields), image in zip(rows, paths, strict=True)
        if not is_file(image)
    ]
    if missing:
        more = len(missing) - _MAX_NAMED
        raise DataError(
            f"{path} names {len(missing)} files that are not there.\n  "
            + "; ".join(missing[:_MAX_NAMED])
            + (f"; and {more} more" if more > 0 else "")
            + f".\n  Relative paths start at {path.parent}."
        )
    labels: list[int | None] = [None] * len(rows)
    if labeled:
        labels = _row_labels(path, rows, class_names)
    items = [
        Item(printable(fields[0]), label) for (_, fields), label in zip(rows, labels, strict=True)
    ]
    return FileSource(path.parent, [fields[0] for _, fields in rows], items)


def label_texts(path: Path) -> list[str]:
    """Gives the second field of each row as it is written, "" where there is none.

    Raises:
        DataError: no such file, not CSV, a row that is not understood.
    """
    return [fields[1] if len(fields) > 1 else "" for _, fields in _read_rows(path)]


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """Gives the rows that are not empty, each with its line number."""
    rows: list[tuple[int, list[str]]] = []
    first_seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                stripped = [field.strip() for field in fields]
                if not any(stripped):
                    continue
                line = reader.line_num
                if not rows and not first_seen and stripped[0].lower() == "path":
                    first_seen["path"] = line
                    continue
                _check_row(path, line, stripped, first_seen)
                rows.append((line, stripped))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(
            f"{path} cannot be read: {reason}.\n  Name a CSV file of image paths."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}.\n  Save the list as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV row: {error}.") from error
    return rows


def _check_row(path: Path, line: int, fields: Sequence[str], first_seen: dict[str, int]) -> None:
    if len(fields) > 2 or not fields[0]:
        raise DataError(
            f"{path}:{line}: the row has {len(fields)} fields, expected: path[,label].\n"
            "  Put names with commas into double quotes."
        )
    if fields[0] in first_seen:
        raise DataError(
            f"{path}:{line}: {printable(fields[0])} is in line {first_seen[fields[0]]} already.\n"
            "  Name every image once."
        )
    first_seen[fields[0]] = line


def _row_labels(
    path: Path, rows: Sequence[tuple[int, list[str]]], class_names: Sequence[str]
) -> list[int | None]:
    index = LabelIndex(class_names)
    if not any(len(fields) > 1 and fields[1] for _, fields in rows):
        raise DataError(f"{path} has no labels, and labels are needed.\n  Write path,label a line.")
    return [
        index.require(fields[1] if len(fields) > 1 else "", f"{path}:{line}")
        for line, fields in rows
    ]
