"""A CSV file that lists images, and their classes if they have labels.

A heading names the columns. If there is no heading, a row is `path` or `path,label`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kdedge.data.sources import FileSource, Item, LabelIndex, is_file
from kdedge.errors import DataError
from kdedge.files import printable, read_text
from kdedge.messages import some_of

_IMAGE_HEADINGS = (
    "path", "image", "images", "image_path", "imagepath", "img", "img_path", "image_file",
    "file", "filename", "file_name", "filepath", "file_path", "image_name", "image_id",
)  # fmt: skip
_LABEL_HEADINGS = (
    "label", "labels", "class", "classes", "category", "target", "cls", "species", "tag",
    "class_name", "classname",
)  # fmt: skip
_DELIMITERS = (",", ";", "\t")  # the heading decides; a comma if it does not


class _Row(NamedTuple):
    """A row: its line number, the image's path, and the label, "" if there is none."""

    line: int
    path: str
    label: str


def open_source(
    path: Path, *, class_names: Sequence[str], labeled: bool, n_positions: int | None = None
) -> FileSource:
    """Reads a list of images, in the order of its rows; the keys are the paths in it.

    Args:
        path: CSV file in UTF-8. A first row with a column such as `path`, `image` or `filename` is
            a heading; a column such as `label` or `class` then holds the labels, and other columns
            are not read. Without a heading the first field is the path and the second the label.
            Paths are relative to the file's folder; they may lead anywhere, since the list is the
            user's own.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels: a class name, as `LabelIndex` finds it, or else a position in the
            class list from 0. An image with an empty field has no label.
        n_positions: as for `LabelIndex`.

    Raises:
        DataError: no such file, not CSV, an invalid row, missing files, or no image.
    """
    heading, rows = _read_rows(path)
    if not rows:
        raise DataError(f"{path} lists no images.\n  Write one image path per line.")
    _check_files(path, heading, rows)
    labels: list[int | None] = [None] * len(rows)
    if labeled:
        if not any(row.label for row in rows):
            has = "" if heading is None else f" Its columns: {', '.join(heading)}."
            raise DataError(
                f"{path} has no labels, and labels are needed.{has}\n"
                "  Write each line as path,label, or name the column of labels label, class or"
                " category."
            )
        index = LabelIndex(class_names, n_positions)
        labels = [index.read(row.label, f"{path}:{row.line}") for row in rows]
    items = [Item(printable(row.path), label) for row, label in zip(rows, labels, strict=True)]
    return FileSource(path.parent, [row.path for row in rows], items)


def label_texts(path: Path) -> list[str]:
    """Returns each row's label as written; "" if it has none.

    Raises:
        DataError: no such file, not CSV, or an invalid row.
    """
    return [row.label for row in _read_rows(path)[1]]


def _read_rows(path: Path) -> tuple[list[str] | None, list[_Row]]:
    """Returns the heading's fields (None if there is no heading) and the non-empty rows."""
    text = read_text(path, remedy="Name a CSV file of image paths.")
    head = text.lstrip("".join(_DELIMITERS) + " \r\n").partition("\n")[0]
    marks = (mark for mark in _DELIMITERS if _find_headings(head.split(mark), _IMAGE_HEADINGS))
    reader = csv.reader(io.StringIO(text), strict=True, delimiter=next(marks, ","))
    heading: list[str] | None = None
    columns: tuple[int, Sequence[int]] = 0, [1]
    rows: dict[str, _Row] = {}
    try:
        for row in reader:
            fields = [field.strip() for field in row]
            named_columns = None if rows or heading else _columns(path, fields)
            if named_columns is not None:
                heading = fields
                columns = named_columns
            elif any(fields):
                read = _read_row(path, reader.line_num, fields, heading, columns)
                if read.path in rows:
                    raise DataError(
                        f"{path}:{read.line}: {printable(read.path)} is already in line"
                        f" {rows[read.path].line}.\n  List every image once."
                    )
                rows[read.path] = read
    except csv.Error as error:
        raise DataError(
            f"{path}:{reader.line_num}: not a CSV row: {error}.\n  Write each line as path,label."
        ) from error
    return heading, list(rows.values())


def _read_row(
    file: Path,
    line: int,
    fields: Sequence[str],
    heading: Sequence[str] | None,
    columns: tuple[int, Sequence[int]],
) -> _Row:
    """The row of an image by the columns of its path and its label; a label may be missing.

    Where the label is a number, a further column has the class's name.
    """
    image, labels = columns
    n_fields = 2 if heading is None else len(heading)
    if not image < len(fields) <= n_fields or not fields[image]:
        raise DataError(
            f"{file}:{line}: the row has {len(fields)} fields, expected:"
            f" {','.join(heading or ['path[,label]'])}.\n"
            "  Put names with commas into double quotes."
        )
    texts = [fields[column] for column in labels if column < len(fields)] or [""]
    is_number = texts[0].isdecimal() and texts[-1] != ""
    return _Row(line, fields[image], texts[-1 if is_number else 0])


def _columns(path: Path, fields: Sequence[str]) -> tuple[int, Sequence[int]] | None:
    """The columns of path and labels if the row is a heading; None if it is the row of an image."""
    images = _find_headings(fields, _IMAGE_HEADINGS)
    if not images:
        return None
    is_path = fields[0].lower() == "path"  # always a heading, even if a file has this name
    if not is_path and is_file(path.parent / fields[0]):
        return None
    labels = _find_headings(fields, _LABEL_HEADINGS)
    if not labels and is_path and len(fields) == 2:
        return images[0], [1]  # the other column has the labels, whatever its name
    return images[0], [*labels[:1], *_find_headings(fields, _LABEL_HEADINGS[-2:])]


def _find_headings(fields: Sequence[str], names: Sequence[str]) -> list[int]:
    """Positions of the fields that have one of the names, in the order of the names."""
    headings = [field.strip().strip('"').lower().replace(" ", "_") for field in fields]
    return [headings.index(name) for name in names if name in headings]


def _check_files(path: Path, heading: Sequence[str] | None, rows: Sequence[_Row]) -> None:
    missing = [row for row in rows if not is_file(path.parent / row.path)]
    if not missing:
        return
    lines = (f"line {row.line}: {printable(row.path)}" for row in missing)
    examples = "; ".join(some_of(lines))
    hint = ""
    if heading is None and missing == list(rows[:1]) and len(rows) > 1:
        hint = (
            f"\n  If line {rows[0].line} is a heading, call its columns path and label, or"
            f" {', '.join(_IMAGE_HEADINGS[1:4])}, ... and {', '.join(_LABEL_HEADINGS[2:5])}, ..."
        )
    elif all(";" in row.path for row in missing):
        hint = "\n  These lines have semicolons; separate the columns by commas."
    raise DataError(
        f"{path} names {len(missing)} missing files.\n  {examples}.\n"
        f"  Relative paths start at {path.parent}.{hint}"
    )
