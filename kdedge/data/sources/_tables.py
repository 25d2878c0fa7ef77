"""Images in the rows of tables: what Parquet files and Hugging Face datasets have in common.

An image is a value of a column: its file's bytes, or a struct with a field `bytes`, as Hugging
Face's Image feature is stored. Which column that is, and what the numbers in a label column mean,
is in the features that its `datasets` package writes into a schema's metadata (`_columns`).
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from kdedge.data.sources._columns import Columns, choose_columns, no_column
from kdedge.data.sources._labels import LabelIndex
from kdedge.data.sources._protocol import MAX_FILE_BYTES, Item, printable
from kdedge.errors import DataError, MissingPackage
from kdedge.runtime.preprocess import UnusableImage

CACHE_BYTES = 1 << 28
"""Of decoded images that a process keeps (256 MiB), and the most that a chunk may hold."""


class Table(Protocol):
    """An open table: its rows stand in chunks, each of which is read as a whole."""

    @property
    def schema(self) -> Any:
        """Its pyarrow schema."""
        ...

    @property
    def chunk_rows(self) -> Sequence[int]:
        """How many rows each chunk has."""
        ...

    def chunk(self, number: int, column: str) -> Any:
        """A chunk's values of a column, a pyarrow array."""
        ...

    def check_chunks(self, column: str) -> None:
        """Looks whether each chunk of a column fits into memory.

        Raises:
            DataError: one does not.
        """
        ...


OpenTable = Callable[[Path], Table]
"""Opens a table; of a module, so that it can be pickled. DataError: it is damaged."""


@dataclass(frozen=True)
class _File:
    """A table's file as it was when it was indexed."""

    path: Path
    size: int
    modified_ns: int
    chunk_starts: tuple[int, ...]
    first: int


class TableSource:
    """Images in tables, in the order of the files and of their rows.

    Attributes:
        items: one a row; the key is `file/row`, from 0.
    """

    def __init__(
        self, open_table: OpenTable, files: Sequence[_File], column: str, items: Sequence[Item]
    ) -> None:
        self.items = tuple(items)
        self._open_table = open_table
        self._files = tuple(files)
        self._column = column
        self._open_here()

    def _open_here(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[int, Table] = {}
        self._chunks: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out open files and what was read of them: each process has its own."""
        kept = ("items", "_open_table", "_files", "_column")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_here()

    def read(self, i: int) -> bytes:
        """Gives the bytes of image i's file.

        Raises:
            UnusableImage: the row has none, or they cannot be read.
            DataError: the file is not the one that was indexed.
        """
        number = bisect.bisect_right(self._files, i, key=lambda file: file.first) - 1
        row = i - self._files[number].first
        starts = self._files[number].chunk_starts
        chunk = bisect.bisect_right(starts, row) - 1
        scalar = self._chunk(number, chunk)[row - starts[chunk]]
        try:
            value = scalar.as_py()
        except ValueError as error:  # of its path, as names need not be UTF-8
            raise UnusableImage(f"is damaged: {first_line(error)}") from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None:
            path = value.get("path") if isinstance(value, dict) else None
            raise UnusableImage(f"has no bytes, only the path {path}" if path else "has no bytes")
        if len(data) > MAX_FILE_BYTES:
            raise UnusableImage(f"larger than {MAX_FILE_BYTES >> 20} MiB, which no photo is")
        return bytes(data)

    def _chunk(self, number: int, chunk: int) -> Any:
        """A chunk's images; those that were asked for last are kept."""
        with self._lock:
            key = (number, chunk)
            if key not in self._chunks:
                self._chunks[key] = self._read_chunk(number, chunk)
            self._chunks.move_to_end(key)
            while len(self._chunks) > 1 and self._n_bytes() > CACHE_BYTES:
                self._chunks.popitem(last=False)
            return self._chunks[key]

    def _n_bytes(self) -> int:
        return sum(chunk.nbytes for chunk in self._chunks.values())

    def _read_chunk(self, number: int, chunk: int) -> Any:
        import pyarrow as pa

        file = self._files[number]
        try:
            if number not in self._tables:
                status = file.path.stat()
                if (status.st_size, status.st_mtime_ns) != (file.size, file.modified_ns):
                    raise DataError(
                        f"{file.path} has changed since its index was made.\n"
                        "  Start again once nothing writes to it any more."
                    )
                self._tables[number] = self._open_table(file.path)
            return self._tables[number].chunk(chunk, self._column)
        except OSError as error:  # pyarrow's own may be of it, too
            raise UnusableImage(f"{file.path} cannot be read: {first_line(error)}") from error
        except (ValueError, pa.ArrowException) as error:
            raise UnusableImage(f"{file.path} is damaged: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def need_pyarrow(purpose: str) -> None:
    """Says what is missing where pyarrow is not installed.

    Raises:
        MissingPackage: it is not.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise MissingPackage("pyarrow", extra="data", purpose=purpose) from error


def open_tables(
    open_table: OpenTable,
    paths: Sequence[Path],
    *,
    image_column: str | None,
    label_column: str | None,
    class_names: Sequence[str],
    labeled: bool,
) -> TableSource:
    """Indexes tables; images are not read.

    Args:
        open_table: opens one.
        paths: in order, one or more.
        image_column: None for the only one that holds images.
        label_column: None for the one that the features, or its name, say.
        class_names: in class-list order; used where `labeled`.
        labeled: labels are needed, and are positions in `class_names`.

    Raises:
        DataError: a file is damaged, has no such column, other columns than the first, or a label
            that is no class name; or there is no row at all.
    """
    index = LabelIndex(class_names)
    files: list[_File] = []
    items: list[Item] = []
    first: Columns | None = None
    for path, name in zip(paths, _names(paths), strict=True):
        status = path.stat()
        table = open_table(path)
        columns = choose_columns(table.schema, path, image=image_column, label=label_column)
        first = first or columns
        if columns != first:
            raise DataError(
                f"{path} has other columns or class names than {paths[0]}: {columns}, and there"
                f" {first}.\n  Name files of one data set."
            )
        table.check_chunks(columns.image)
        starts = [0, *itertools.accumulate(table.chunk_rows)]
        labels: list[int | None] = [None] * starts[-1]
        if labeled:
            labels = _positions(_label_texts(table, columns, path), path, columns, index)
        stamp = (status.st_size, status.st_mtime_ns)
        files.append(_File(path, *stamp, tuple(starts[:-1]), len(items)))
        items += [Item(f"{name}/{row}", label) for row, label in enumerate(labels)]
    if first is None or not items:
        names = f"{len(paths)} files, the first is {paths[0]}," if len(paths) > 1 else paths[0]
        raise DataError(f"{names} without any rows.\n  Name files that hold images.")
    return TableSource(open_table, files, first.image, items)


def label_texts(open_table: OpenTable, paths: Sequence[Path]) -> list[str]:
    """Gives each row's label as a text, "" where there is none.

    Raises:
        DataError: a file is damaged or has no such column.
    """
    texts: list[str] = []
    for path in paths:
        table = open_table(path)
        columns = choose_columns(table.schema, path, image=None, label=None)
        if columns.label is None:
            texts += [""] * sum(table.chunk_rows)
        else:
            texts += _label_texts(table, columns, path)
    return texts


def _label_texts(table: Table, columns: Columns, path: Path) -> list[str]:
    """Each row's label: a name where the table has one, else the number; "" where there is none."""
    if columns.label is None:
        raise no_column(path, table.schema, "column of labels", "label_column")
    texts = []
    for number in range(len(table.chunk_rows)):
        for row, value in enumerate(_label_values(table, number, columns.label, path)):
            text = _label_text(value, columns.names)
            if text is None:
                where = sum(table.chunk_rows[:number]) + row
                known = len(columns.names or ())
                raise DataError(
                    f"{path}, row {where}: the {columns.label} is {value!r:.80}, expected one of"
                    f" the {known} classes that its features name."
                )
            texts.append(text)
    return texts


def _label_values(table: Table, number: int, column: str, path: Path) -> list[object]:
    """A chunk's labels."""
    import pyarrow as pa

    try:
        values: list[object] = table.chunk(number, column).to_pylist()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is damaged in its column {column}: {first_line(error)}.\n"
            "  Copy or download it again."
        ) from error
    return values


def _label_text(value: object, names: Sequence[str] | None) -> str | None:
    """A label as a text; None where it is none."""
    if value is None or value == -1:  # what `datasets` has for an image without a class
        return ""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    if names is None:
        return str(value)
    return names[value] if value < len(names) else None


def _positions(
    texts: Sequence[str], path: Path, columns: Columns, index: LabelIndex
) -> list[int | None]:
    positions: list[int | None] = []
    for row, text in enumerate(texts):
        found = index.find(text) if columns.names else index.find_name_or_number(text)
        if found is None:
            what = f'"{text}" is not a class name{index.nearest(text)}' if text else "no label"
            raise DataError(
                f"{path}, row {row}: {what}.\n  Expected one of the {len(index.class_names)} class"
                " names" + ("." if columns.names else ", or a position among them.")
            )
        positions.append(found)
    return positions


def _names(paths: Sequence[Path]) -> list[str]:
    """Paths below the folder that all files have in common."""
    absolute = [path.absolute() for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    return [printable(path.relative_to(common).as_posix()) for path in absolute]
