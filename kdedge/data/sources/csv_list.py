"""A CSV file that lists images, and their classes if they have labels.

A heading names the columns. Without one, a row is `path` or `path,label`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.sources import FileSource, Item, LabelIndex, is_file
from kdedge.errors import DataError, some_of
from kdedge.files import printable, read_text

_IMAGE_HEADINGS = (
    *("path", "image", "images", "image_path", "imagepath", "img", "img_path", "image_file"),
    *("file", "filename", "file_name", "filepath", "file_path", "image_name", "image_id"),
)
_LABEL_HEADINGS = (
    *("label", "labels", "class", "classes", "class_name", "classname", "category", "target"),
    *("cls", "species", "tag"),
)
_DELIMITERS = (",", ";", "\t")  # a comma, unless the heading shows another
_MAX_NAMED = 5


@dataclass(frozen=True)
class _Row:
    """A row: its line, the image's path, and its label or ""."""

    line: int
    path: str
    label: str


@dataclass(frozen=True)
class _Columns:
    """Which columns hold path and label.

    Attributes:
        path: position of the path.
        label: position of the label; None if the heading has no such column.
        heading: the heading's fields; None if there is no heading.
    """

    path: int = 0
    label: int | None = 1
    heading: tuple[str, ...] | None = None

    def row(self, path: Path, line: int, fields: Sequence[str]) -> _Row:
        """Returns path and label of a row.

        Raises:
            DataError: it has too many fields, or no path.
        """
        n_fields = 2 if self.heading is None else len(self.heading)
        if len(fields) > n_fields or len(fields) <= self.path or not fields[self.path]:
            expected = "path[,label]" if self.heading is None else ",".join(self.heading)
            raise DataError(
                f"{path}:{line}: the row has {len(fields)} fields, expected: {expected}.\n"
                "  Put names with commas into double quotes."
            )
        has_label = self.label is not None and self.label < len(fields)
        return _Row(line, fields[self.path], fields[self.label or 0] if has_label else "")


def open_source(path: Path, *, class_names: Sequence[str], labeled: bool) -> FileSource:
    """Reads a list of images, in the order of its rows; the keys are the paths in it.

    Args:
        path: CSV file in UTF-8. A first row with a column such as `path`, `image` or `filename` is
            a heading; a column such as `label` or `class` then holds the labels, and other columns
            are not read. Without a heading the first field is the path and the second the label.
            Paths are relative to the file's folder; they may lead anywhere, since the list is the
            user's own.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels: a class name, as `LabelIndex` finds it, or else a position in the
            class list from 0. An empty field is no label.

    Raises:
        DataError: no such file, not CSV, an invalid row, missing files, or no image.
    """
    columns, rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path} lists no images.\n  Write one image path per line.")
    _check_files(path, columns, rows)
    labels: list[int | None] = [None] * len(rows)
    if labeled:
        labels = _row_labels(path, columns, rows, class_names)
    items = [Item(printable(row.path), label) for row, label in zip(rows, labels, strict=True)]
    return FileSource(path.parent, [row.path for row in rows], items)


def label_texts(path: Path) -> list[str]:
    """Returns each row's label as written; "" without one.

    Raises:
        DataError: no such file, not CSV, or an invalid row.
    """
    return [row.label for row in _read_rows(path)[1]]


def _read_rows(path: Path) -> tuple[_Columns, list[_Row]]:
    """Returns the columns and the non-empty rows."""
    columns: _Columns | None = None
    rows: list[_Row] = []
    first_seen: dict[str, int] = {}
    for line, fields in _lines(path):
        if columns is None:
            columns = _find_columns(path, fields)
            if columns.heading is not None:
                continue
        row = columns.row(path, line, fields)
        if row.path in first_seen:
            raise DataError(
                f"{path}:{line}: {printable(row.path)} is already in line {first_seen[row.path]}.\n"
                "  List every image once."
            )
        first_seen[row.path] = line
        rows.append(row)
    return columns or _Columns(), rows


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields line number and fields of each non-empty row."""
    text, line = read_text(path, remedy="Name a CSV file of image paths."), 0
    head = text.partition("\n")[0]
    marks = (mark for mark in _DELIMITERS if _named(head.split(mark), _IMAGE_HEADINGS))
    try:
        reader = csv.reader(io.StringIO(text), strict=True, delimiter=next(marks, ","))
        for fields in reader:
            line = reader.line_num
            stripped = [field.strip() for field in fields]
            if any(stripped):
                yield line, stripped
    except csv.Error as error:
        raise DataError(
            f"{path}:{line + 1}: not a CSV row: {error}.\n  Write each line as path,label."
        ) from error


def _find_columns(path: Path, fields: Sequence[str]) -> _Columns:
    """Reads the first row as a heading, unless it names an image."""
    images = _named(fields, _IMAGE_HEADINGS)
    is_path = fields[0].lower() == "path"  # always a heading, even if there is such a file
    if not images or (not is_path and is_file(path.parent / fields[0])):
        return _Columns()
    labels = _named(fields, _LABEL_HEADINGS)
    label = labels[0] if labels else None
    if label is None and is_path and len(fields) == 2:
        label = 1  # whatever its name
    return _Columns(images[0], label, tuple(fields))


def _named(fields: Sequence[str], names: Sequence[str]) -> list[int]:
    """Positions of the fields with one of these names, in the order of the names."""
    headings = [field.strip().strip('"').lower().replace(" ", "_") for field in fields]
    return [headings.index(name) for name in names if name in headings]


def _check_files(path: Path, columns: _Columns, rows: Sequence[_Row]) -> None:
    missing = [row for row in rows if not is_file(path.parent / row.path)]
    if not missing:
        return
    lines = (f"line {row.line}: {printable(row.path)}" for row in missing)
    named = "; ".join(some_of(lines, _MAX_NAMED))
    hint = ""
    if columns.heading is None and missing == list(rows[:1]) and len(rows) > 1:
        hint = (
            f"\n  If line {rows[0].line} is a heading, call its columns path and label, or"
            f" {', '.join(_IMAGE_HEADINGS[1:4])}, ... and {', '.join(_LABEL_HEADINGS[1:4])}, ..."
        )
    elif all(";" in row.path for row in missing):
        hint = "\n  These lines have semicolons; separate the columns by commas."
    raise DataError(
        f"{path} names {len(missing)} missing files.\n  {named}.\n"
        f"  Relative paths start at {path.parent}.{hint}"
    )


def _row_labels(
    path: Path, columns: _Columns, rows: Sequence[_Row], class_names: Sequence[str]
) -> list[int | None]:
    if not any(row.label for row in rows):
        has = "" if columns.heading is None else f" Its columns: {', '.join(columns.heading)}."
        raise DataError(
            f"{path} has no labels, and labels are needed.{has}\n"
            "  Write each line as path,label, or name the column of labels label, class or"
            " category."
        )
    index = LabelIndex(class_names)
    return [index.read(row.label, f"{path}:{row.line}") for row in rows]
