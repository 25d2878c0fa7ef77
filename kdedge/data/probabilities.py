"""Files of class probabilities by image key, predicted by a model outside of kdedge.

CSV text, UTF-8. The first line is `image` and the class names, in any order; every other line is an
image's key and its probability of each of these classes:

    image,red fox,school bus,pizza
    cam1/0007.jpg,0.91,0.02,0.07

Keys are the image source's: the path within the folder, or the name in the shard. A key or
class name with a comma is quoted. A line's probabilities are 0 to 1 and sum to 1, within 0.001, and
are divided by their sum. Lines of images that are not in the source are ignored.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdedge.data.sources import LabelIndex
from kdedge.errors import DataError
from kdedge.files import open_regular
from kdedge.messages import first_line, some_of

_KEY_COLUMN = "image"
_TOLERANCE = 1e-3  # of the sum of 200 probabilities that were rounded to five digits


def read_probabilities(
    path: Path, *, keys: Sequence[str], class_names: Sequence[str]
) -> npt.NDArray[np.float32]:
    """Reads the probabilities of some images.

    Args:
        path: the file.
        keys: keys of the N images; each must have one line.
        class_names: all C names; each must be a column of the file, in any order.

    Returns:
        [N, C]: rows in the order of `keys`, columns in the order of `class_names`; each row sums to
        1.

    Raises:
        DataError: the file cannot be read, has other classes, lacks an image or has it twice, or a
            line's values are no probabilities; the message has the line's number.
    """
    rows = {key: row for row, key in enumerate(keys)}
    if len(rows) < len(keys):
        repeated = [key for key, count in Counter(keys).items() if count > 1]
        raise DataError(
            f"Several images have the same name, such as {repeated[0]!r}, and {path} identifies"
            " images by their names.\n  Rename the images, or teach without that file."
        )
    values = np.empty((len(keys), len(class_names)), np.float32)
    lines: dict[str, int] = {}
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = _read_header(path, next(reader, []), class_names)
            for key, *cells in filter(None, reader):
                place = f"{path}:{reader.line_num}"
                if key in lines:
                    raise DataError(
                        f"{place}: the image {key!r} is there twice, first in line {lines[key]}.\n"
                        "  Keep one of the lines."
                    )
                lines[key] = reader.line_num
                row = _read_row(place, cells, len(columns))
                if key in rows:
                    values[rows[key], columns] = row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as CSV text in UTF-8: {first_line(error)}.\n  Write it again."
        ) from error
    missing = [key for key in keys if key not in lines]
    if missing:
        raise DataError(
            f"{path} has no line for {len(missing)} of {len(keys)} images, first"
            f" {missing[0]!r}.\n  Add them: the teacher needs a line for every image, by its path"
            " within the folder or its name in the shard."
        )
    return values


def _read_header(path: Path, cells: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Returns the class of each column after the first."""
    names = cells[1:]
    if cells[:1] != [_KEY_COLUMN] or sorted(names) != sorted(class_names):
        index = LabelIndex(class_names)
        unknown = [f'"{name}"{index.nearest(name)}' for name in names if name not in class_names]
        missing = [f'"{name}"' for name in class_names if name not in names]
        lists = {"Not in the class list": unknown, "Missing": missing}
        differences = [f"{what}: {', '.join(some_of(x, 3))}." for what, x in lists.items() if x]
        raise DataError(
            f"{path}:1: expected {_KEY_COLUMN!r} and each of the {len(class_names)} class names"
            f" once, got {','.join(cells)[:80]!r}. {' '.join(differences)}\n"
            f"  Write it as: {_KEY_COLUMN},{class_names[0]},..."
        )
    return [class_names.index(name) for name in names]


def _read_row(place: str, cells: Sequence[str], n_classes: int) -> npt.NDArray[np.float32]:
    """Returns the probabilities of a line, [C], in the order of the columns."""
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError:
        values = np.array([np.nan])
    total = float(values.sum())
    if len(values) != n_classes or not (values >= 0).all() or not abs(total - 1) <= _TOLERANCE:
        raise DataError(
            f"{place}: expected {n_classes} probabilities from 0 to 1 that sum to 1, got"
            f" {len(cells)}, with the sum {total:.6g}: {','.join(cells)[:80]!r}.\n"
            "  Write the softmax over the classes of the first line, not logits or percent."
        )
    return (values / total).astype(np.float32)
