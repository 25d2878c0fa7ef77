"""Parquet files whose rows hold images: bytes, or Hugging Face's struct of bytes and path.

A row group is the least that can be read of such a file. Small ones are read as they are asked for;
one that does not fit into the memory set aside for it is refused, with the command that writes the
file anew.
"""

from __future__ import annotations

import glob
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdedge.data.sources import _tables
from kdedge.data.sources._tables import (
    TableSource,
    first_line,
    label_texts,
    need_pyarrow,
    open_tables,
)
from kdedge.errors import DataError

_ROWS = 100
"""Rows a group in the command of the message, as `datasets` writes images."""


def open_source(
    pattern: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str],
    labeled: bool,
) -> TableSource:
    """Indexes local Parquet files.

    Args:
        pattern: a file, a folder of `.parquet` files, or a pattern with `*`.
        image_column: None for the only one that holds images.
        label_column: None for the one that the features, or its name, say.
        class_names: in class-list order; used where `labeled`.
        labeled: labels are needed: class names, or numbers that are positions in the class list
            where the file's features do not say otherwise.

    Raises:
        DataError: no such file, one that is damaged or has other columns, a label that is no class
            name, a row group that is too large.
        MissingPackage: pyarrow is not installed.
    """
    need_pyarrow("Reading Parquet files")
    columns = {"image_column": image_column, "label_column": label_column}
    paths = find_files(pattern)
    return open_tables(_open, paths, **columns, class_names=class_names, labeled=labeled)


def texts_of_labels(pattern: str) -> list[str]:
    """Gives each row's label as a text, "" where there is none.

    Raises:
        DataError: no such file, or one that is damaged.
        MissingPackage: pyarrow is not installed.
    """
    need_pyarrow("Reading Parquet files")
    return label_texts(_open, find_files(pattern))


def find_files(pattern: str) -> list[Path]:
    """The files of a pattern, sorted by name.

    Raises:
        DataError: there are none.
    """
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    names = path.parts
    fixed = list(itertools.takewhile(lambda name: not glob.has_magic(name), names))
    rest = "*.parquet" if path.is_dir() else "/".join(names[len(fixed) :])
    files = sorted(one for one in Path(*fixed).glob(rest) if one.is_file()) if rest else []
    if not files:
        raise DataError(
            f"{pattern} names no Parquet file.\n"
            '  Name a file, a folder of .parquet files, or a pattern such as "train-*.parquet".'
        )
    return files


def _open(path: Path) -> _ParquetTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _ParquetTable(path, pq.ParquetFile(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is not a readable Parquet file: {first_line(error)}.\n"
            "  Copy or download it again."
        ) from error


@dataclass(frozen=True)
class _ParquetTable:
    """An open file; its chunks are row groups."""

    path: Path
    file: Any

    @property
    def schema(self) -> Any:
        return self.file.schema_arrow

    @cached_property
    def chunk_rows(self) -> Sequence[int]:
        metadata = self.file.metadata
        return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]

    def chunk(self, number: int, column: str) -> Any:
        table = self.file.read_row_group(number, columns=[column], use_threads=False)
        return table.column(0)

    def check_chunks(self, column: str) -> None:
        for number in range(self.file.metadata.num_row_groups):
            n_bytes = self._n_bytes(number, column)
            if n_bytes > _tables.CACHE_BYTES:
                raise DataError(
                    f"{self.path}: row group {number} holds {n_bytes / 2**20:.0f} MiB of images,"
                    " and one can only be read as a whole; up to"
                    f" {_tables.CACHE_BYTES / 2**20:.0f} MiB are.\n"
                    f"  Write the file anew with small ones:\n  {rewrite_command(self.path)}"
                )

    def _n_bytes(self, number: int, column: str) -> int:
        """Of a row group's images, not compressed."""
        group = self.file.metadata.row_group(number)
        chunks = [group.column(i) for i in range(group.num_columns)]
        own = [one for one in chunks if one.path_in_schema.split(".")[0] == column]
        return sum(one.total_uncompressed_size for one in own)


def rewrite_command(path: Path) -> str:
    """A command that copies a file into one with small row groups, in little memory."""
    target = path.with_name(f"{path.stem}-small.parquet")
    code = (
        "import sys, pyarrow.parquet as pq; f = pq.ParquetFile(sys.argv[1]);"
        " w = pq.ParquetWriter(sys.argv[2], f.schema_arrow);"
        f" [w.write_batch(b) for b in f.iter_batches({_ROWS})]; w.close()"
    )
    return shlex.join(["python", "-c", code, str(path), str(target)])
