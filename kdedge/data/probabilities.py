"""Files of class probabilities by image key: what a model outside of kdedge says of images.

CSV text, UTF-8. The first line is `image` and the class names, in any order; every other line is an
image's key and its probability of each of these classes:

    image,red fox,school bus,pizza
    cam1/0007.jpg,0.91,0.02,0.07

Keys are the image source's: the path within the folder, or the name in the shard. A key or
class name with a comma is quoted. A line's probabilities are 0 to 1 and sum to 1, within 0.001, and
are divided by their sum. Lines of images that the source does not have are passed over.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdedge.data.sources import LabelIndex
from kdedge.errors import DataError
from kdedge.files import sha256_json

_KEY_COLUMN = "image"
_TOLERANCE = 1e-3
"""Of a sum: probabilities that were rounded to five digits, of 200 classes."""

_Row = npt.NDArray[np.float32]
"""[n], of one image."""


@dataclass(frozen=True)
class ImageProbabilities:
    """The probabilities of a list of images.

    Attributes:
        rows: an image's key -> its row.
        values: [N, C], float32, in class-list order; rows sum to 1.
    """

    rows: Mapping[str, int]
    values: npt.NDArray[np.float32]

    @property
    def sha256(self) -> str:
        """Hash of keys and values."""
        values = hashlib.sha256(self.values.tobytes()).hexdigest()
        return sha256_json([list(self.rows), values])


def read_probabilities(
    path: Path, *, keys: Sequence[str], class_names: Sequence[str]
) -> ImageProbabilities:
    """Reads the probabilities of some images.

    Args:
        path: the file.
        keys: the images'; each has to have one line.
        class_names: all C, each of which is a column of the file, in any order.

    Returns:
        The rows of the images, in their order.

    Raises:
        DataError: the file cannot be read, has other classes, lacks an image or has it twice, or a
            line's values are no probabilities; the message has the line's number.
    """
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} names of images are there more than once, first {twice[0]!r}, and"
            f" {path} goes by them.\n  Rename the images, or teach without that file."
        )
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = _read_header(path, next(reader, []), class_names)
            lines = ((reader.line_num, cells) for cells in reader if cells)
            rows = _read_lines(path, lines, len(columns), set(keys))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text ({error.reason}).\n  Save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise DataError(f"{path} is not CSV text: {error}.\n  Write it again.") from error
    return _in_order(path, keys, rows, columns)


def _read_lines(
    path: Path, lines: Iterable[tuple[int, list[str]]], n_classes: int, keys: Collection[str]
) -> dict[str, _Row]:
    """The rows of the wanted images; every line is checked."""
    rows: dict[str, _Row] = {}
    first: dict[str, int] = {}
    for number, (key, *cells) in lines:
        place = f"{path}:{number}"
        if len(cells) != n_classes:
            raise DataError(
                f"{place}: {len(cells)} probabilities, expected {n_classes}, as many as the first"
                " line has classes.\n  Correct the line."
            )
        if key in first:
            raise DataError(
                f"{place}: the image {key!r} is there twice, first in line {first[key]}.\n"
                "  Keep one of the lines."
            )
        first[key] = number
        row = _read_row(place, cells)
        if key in keys:
            rows[key] = row
    return rows


def _in_order(
    path: Path,
    keys: Sequence[str],
    rows: Mapping[str, _Row],
    columns: Sequence[int],
) -> ImageProbabilities:
    missing = [key for key in keys if key not in rows]
    if missing:
        raise DataError(
            f"{path} has no line for {len(missing)} of {len(keys)} images, first"
            f" {missing[0]!r}.\n  Add them: a teacher answers for every image, by its path within"
            " the folder or its name in the shard."
        )
    order = np.argsort(columns, kind="stable")
    values = np.stack([rows[key] for key in keys])[:, order]
    positions = {key: row for row, key in enumerate(keys)}
    return ImageProbabilities(positions, np.ascontiguousarray(values))


def _read_header(path: Path, cells: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """The class of each column after the first."""
    if len(cells) < 2 or cells[0] != _KEY_COLUMN:
        raise DataError(
            f"{path}:1: the first line is not {_KEY_COLUMN!r} and the class names:"
            f" {','.join(cells)[:80]!r}.\n  Write it as: {_KEY_COLUMN},{class_names[0]},..."
        )
    position = {name: number for number, name in enumerate(class_names)}
    unknown = [name for name in cells[1:] if name not in position]
    if unknown:
        near = LabelIndex(class_names).nearest(unknown[0])
        raise DataError(
            f"{path}:1: {len(unknown)} of {len(cells) - 1} classes are not in the class list, first"
            f" {unknown[0]!r}{near}.\n  Name the classes as the recipe does."
        )
    columns = [position[name] for name in cells[1:]]
    if len(set(columns)) < len(columns):
        name = next(name for name in cells[1:] if cells[1:].count(name) > 1)
        raise DataError(f"{path}:1: the class {name!r} is there twice.\n  Keep one column of it.")
    lacking = [name for name in class_names if name not in cells[1:]]
    if lacking:
        raise DataError(
            f"{path}:1: {len(columns)} of {len(class_names)} classes, without {lacking[0]!r}.\n"
            "  Add the others: a teacher answers for every class."
        )
    return columns


def _read_row(place: str, cells: Sequence[str]) -> _Row:
    try:
        values = np.array([float(cell) for cell in cells])
    except ValueError as error:
        raise DataError(
            f"{place}: not numbers: {str(error)[:120]}.\n  Correct the line."
        ) from error
    if not np.isfinite(values).all():
        raise DataError(f"{place}: a probability is not finite.\n  Correct the line.")
    if (values < 0).any():
        raise DataError(
            f"{place}: a probability is {values.min():g}, expected 0 to 1.\n"
            "  Write probabilities, not logits: the softmax of them."
        )
    total = float(values.sum())
    if abs(total - 1) > _TOLERANCE:
        raise DataError(
            f"{place}: the probabilities sum to {total:.6g}, expected 1.\n"
            "  Write probabilities over the classes of the first line, not logits or percent."
        )
    row: _Row = (values / total).astype(np.float32)
    return row
