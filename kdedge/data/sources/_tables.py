"""Images in the rows of a `datasets.Dataset`, with memory-mapped Arrow files.

An image is a value of a column: its file's bytes, or a struct with a field `bytes`, as the Image
feature of `datasets` is stored. `datasets` does not decode it; kdedge does, with its own limits.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from kdedge.data.sources import MAX_FILE_BYTES, Item, LabelIndex, Location, relative_names
from kdedge.errors import DataError
from kdedge.files import FileStamp
from kdedge.messages import first_line, name_some
from kdedge.runtime.preprocess import ImageError

_LABEL_COLUMNS = ("label", "labels")


@contextlib.contextmanager
def quiet_datasets(datasets: Any) -> Iterator[None]:
    """Context in which `datasets` shows progress bars only on terminals, and logs no errors."""
    verbosity = datasets.logging.get_verbosity()
    hides_bars = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not hides_bars:
            datasets.enable_progress_bars()


@dataclass(frozen=True)
class Columns:
    """The columns of a table that kdedge reads.

    Attributes:
        image: the column of images.
        label: the column of labels; None if there is none.
        names: class names of the numbers in it; None if the table does not name them.
    """

    image: str
    label: str | None
    names: tuple[str, ...] | None


class TableFile(NamedTuple):
    """A file of a data set, as it was indexed.

    Attributes:
        path: the file's path.
        schema: pyarrow's schema, with the metadata that `datasets` writes.
        n_rows: number of images in the file.
        stamp: the file's stamp.
    """

    path: Path
    schema: Any
    n_rows: int
    stamp: FileStamp


class TableSource:
    """A source of images in table rows, in the order of the files and of their rows.

    Its pickle is small: each process maps the files itself.

    Attributes:
        items: one item per row; the key is `file/row`, from 0.
    """

    def __init__(
        self,
        dataset: Any,
        files: Sequence[TableFile],
        columns: Columns,
        class_names: Sequence[str],
        *,
        labeled: bool,
    ) -> None:
        self._dataset = dataset.with_format("arrow")
        self._columns = columns
        self._files = tuple(file._replace(schema=None) for file in files)
        self._starts = (0, *itertools.accumulate(file.n_rows for file in files))
        assert self._starts[-1] == len(dataset)
        rows = zip(files, relative_names([file.path for file in files]), strict=True)
        keys = [f"{name}/{row}" for file, name in rows for row in range(file.n_rows)]
        labels: Sequence[int | None] = [None] * len(keys)
        if labeled:
            if columns.label is None:
                raise _no_column_error(files[0], "column of labels", "label_column")
            index = LabelIndex(class_names)
            numbers = columns.names is None
            labels = [
                index.read(text, self._where(i), numbers=numbers)
                for i, text in enumerate(self.label_texts())
            ]
            if all(label is None for label in labels):
                raise DataError(
                    f"{files[0].path}: no row has a label in its column {columns.label}, and labels"
                    " are needed.\n  Name another column as label_column."
                )
        self.items = tuple(map(Item, keys, labels))

    def read(self, i: int) -> bytes:
        """Returns the bytes of image i's file.

        Raises:
            ImageError: the row has no bytes, or they cannot be read.
        """
        try:
            row = self._dataset[i].select([self._columns.image])
            row.validate(full=True)  # wrong offsets in a damaged file would crash the process
            value = row.column(0)[0].as_py()
        except arrow_errors() as error:
            file, _ = self._locate(i)
            raise ImageError(f"{file.path} is damaged: {first_line(error)}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            path = value.get("path") if isinstance(value, dict) else None
            raise ImageError(f"has no bytes, only the path {path}" if path else "has no bytes")
        if len(data) > MAX_FILE_BYTES:
            raise ImageError(f"larger than {MAX_FILE_BYTES >> 20} MiB, which no photo is")
        return bytes(data)

    def location(self, i: int) -> Location:
        """Returns image i's file, and its row and column there."""
        file, row = self._locate(i)
        return Location(str(file.path.absolute()), row, file.stamp, self._columns.image)

    def label_texts(self) -> list[str]:
        """Returns each row's label as text; "" if it has none.

        Raises:
            DataError: a file is damaged, or has a number that its features do not name.
        """
        name = self._columns.label
        names = self._columns.names
        if name is None:
            return [""] * self._starts[-1]
        texts = []
        for i, value in enumerate(self._label_values(name)):
            text = _label_text(value, names)
            if text is None:
                raise DataError(
                    f"{self._where(i)}: the {name} is {value!r:.80}, expected one of the"
                    f" {len(names or ())} classes that its features name."
                )
            texts.append(text)
        return texts

    def _label_values(self, column: str) -> list[object]:
        values: list[object] = []
        for file, start in zip(self._files, self._starts, strict=False):
            labels = self._dataset.data.column(column).slice(start, file.n_rows)
            try:
                labels.validate(full=True)
                values += labels.to_pylist()
            except arrow_errors() as error:
                raise DataError(
                    f"{file.path} is damaged in its column {column}: {first_line(error)}.\n"
                    "  Copy or download it again."
                ) from error
        return values

    def _locate(self, i: int) -> tuple[TableFile, int]:
        """Returns the file that contains image i, and the image's row in it."""
        number = bisect.bisect_right(self._starts, i) - 1
        return self._files[number], i - self._starts[number]

    def _where(self, i: int) -> str:
        file, row = self._locate(i)
        return f"{file.path}, row {row}"


@functools.cache
def arrow_errors() -> tuple[type[Exception], ...]:
    """Returns the errors of pyarrow for damaged files, and of `datasets` for damaged metadata."""
    import pyarrow as pa

    return OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException


def choose_columns(
    files: Sequence[TableFile], *, image_column: str | None, label_column: str | None
) -> Columns:
    """Finds the columns of images and labels.

    Args:
        files: the files of one data set.
        image_column: name of the column; None for the only column of images.
        label_column: name of the column; None to find it by the features or by its name.

    Raises:
        DataError: there is no row; a file lacks a column, or the choice is not clear; the files
            differ.
    """
    if not any(file.n_rows for file in files):
        names = f"{len(files)} files, the first is {files[0].path}," if files[1:] else files[0].path
        raise DataError(f"{names} without any rows.\n  Name files that hold images.")
    first, *others = [_choose(file, image_column, label_column) for file in files]
    for file, columns in zip(files[1:], others, strict=True):
        if columns != first:
            raise DataError(
                f"{file.path} has other columns or class names than {files[0].path}: {columns}, and"
                f" there {first}.\n  Name files of one data set."
            )
    return first


def _choose(file: TableFile, image: str | None, label: str | None) -> Columns:
    features = read_features(file.schema)
    image = _image_column(file, features, image)
    label = _label_column(file, features, label)
    names = getattr(features.get(label), "names", None)
    return Columns(image, label, None if names is None else tuple(map(str, names)))


def _image_column(file: TableFile, features: Any, name: str | None) -> str:
    """The named column, else the only one of type Image, else the only one with bytes."""
    images = [column for column, feature in features.items() if _kind(feature) == "image"]
    if name is not None:
        if name not in images:
            raise _no_column_error(file, f"column {name} of images", "image_column")
        return name
    marked = [column for column in images if type(features[column]).__name__ == "Image"]
    candidates: list[str] = marked or images
    if len(candidates) > 1:
        raise DataError(
            f"{file.path} has {len(candidates)} columns that may hold images:"
            f" {name_some(candidates)}.\n  Name one as image_column."
        )
    if not candidates:
        raise _no_column_error(file, "column of images", "image_column")
    return candidates[0]


def _label_column(file: TableFile, features: Any, name: str | None) -> str | None:
    """The named column, else a usual name, else the only column of classes, else None."""
    labels = [column for column, feature in features.items() if _kind(feature) == "label"]
    if name is not None:
        if name not in labels:
            raise _no_column_error(file, f"column {name} of names or numbers", "label_column")
        return name
    classes = [column for column in labels if hasattr(features[column], "names")]
    usual = [column for column in _LABEL_COLUMNS if column in labels]
    if len(classes) == 1:
        usual += classes
    return next(iter(usual), None)


def read_features(schema: Any) -> Any:
    """Returns the `datasets.Features` of a schema; plain types if its metadata is damaged.

    Columns of types that `datasets` does not know are left out.
    """
    import datasets
    import pyarrow

    try:
        return datasets.Features.from_arrow_schema(schema)
    except arrow_errors():
        features: dict[str, Any] = {}
        for field in schema.remove_metadata():
            with contextlib.suppress(*arrow_errors()):
                features |= datasets.Features.from_arrow_schema(pyarrow.schema([field]))
        return datasets.Features(features)


def _kind(feature: Any) -> Literal["image", "label"] | None:
    """The use of a column: images (bytes, or a struct with bytes), or labels (numbers or text)."""
    if isinstance(feature, dict):
        return "image" if _kind(feature.get("bytes")) == "image" else None
    dtype = str(getattr(feature, "dtype", ""))  # "PIL.Image.Image" for a feature of type Image
    if dtype.startswith("PIL.") or dtype in ("binary", "large_binary", "binary_view"):
        return "image"
    return "label" if re.fullmatch(r"u?int\d+|(large_)?string(_view)?", dtype) else None


def _no_column_error(file: TableFile, what: str, key: str) -> DataError:
    """Returns the error for a missing column; `key` is its recipe key."""
    has = ", ".join(f"{field.name} ({field.type})" for field in file.schema)
    kinds = {
        "image_column": "Images are bytes, or a struct with a field bytes",
        "label_column": "Labels are text or whole numbers",
    }
    return DataError(
        f"{file.path} has no {what}.\n  It has: {has:.600}.\n  {kinds[key]}; name the column as"
        f" {key}."
    )


def _label_text(value: object, names: Sequence[str] | None) -> str | None:
    """Converts a label to text, "" if the image has no label; None if the value is invalid."""
    if value is None or value == -1:  # `datasets` writes -1 for an image without a class
        return ""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    if names is None:
        return str(value)
    return names[value] if value < len(names) else None
