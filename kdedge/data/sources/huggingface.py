"""Hugging Face datasets on this disk, as `save_to_disk` writes them: Arrow streams in a folder.

Their files are mapped into memory and not read into it, and the `datasets` package is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kdedge._files import read_json
from kdedge.data.sources._tables import (
    TableSource,
    first_line,
    label_texts,
    need_pyarrow,
    open_tables,
)
from kdedge.errors import DataError

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of an Arrow stream; pyarrow reads one that ends after any batch without it."""


def open_source(
    folder: Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str],
    labeled: bool,
) -> TableSource:
    """Indexes a dataset.

    Args:
        folder: of one dataset; of several splits, that of one of them.
        image_column: None for the only one that holds images.
        label_column: None for the one that the features, or its name, say.
        class_names: in class-list order; used where `labeled`.
        labeled: labels are needed, and their names are found in the class list.

    Raises:
        DataError: it is none, a file is damaged or missing, there is no such column, or a label is
            no class name.
        MissingPackage: pyarrow is not installed.
    """
    need_pyarrow("Reading a Hugging Face dataset")
    columns = {"image_column": image_column, "label_column": label_column}
    files = _files(folder)
    return open_tables(_open, files, **columns, class_names=class_names, labeled=labeled)


def texts_of_labels(folder: Path) -> list[str]:
    """Gives each row's label as a text, "" where there is none.

    Raises:
        DataError: it is no dataset, or a file is damaged.
        MissingPackage: pyarrow is not installed.
    """
    need_pyarrow("Reading a Hugging Face dataset")
    return label_texts(_open, _files(folder))


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset, or holds splits of one."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def _files(folder: Path) -> list[Path]:
    """The dataset's files, in its order."""
    if (folder / _SPLITS).is_file():
        splits = read_json(folder / _SPLITS)
        named = splits.get("splits") if isinstance(splits, dict) else None
        some = ", ".join(map(str, named)) if isinstance(named, list) else "unknown ones"
        raise DataError(
            f"{folder} holds several splits: {some}.\n  Name the folder of one of them."
        )
    if not (folder / _STATE).is_file():
        raise DataError(
            f"{folder} is not a dataset that save_to_disk wrote: it has no {_STATE}.\n"
            "  Write it with dataset.save_to_disk(FOLDER), or name Parquet files as parquet."
        )
    state = read_json(folder / _STATE)
    try:
        if state.get("_indices_files"):
            raise DataError(
                f"{folder} is a selection of rows that are stored in another order.\n"
                "  Write it anew: dataset.flatten_indices().save_to_disk(FOLDER)"
            )
        names = [str(one["filename"]) for one in state["_data_files"]]
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"{folder / _STATE} does not name the dataset's files.") from error
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise DataError(
                f"{folder / _STATE} names {name!r}, and there is no such file beside it.\n"
                "  Copy the whole folder."
            )
    if not names:
        raise DataError(f"{folder} is a dataset without any rows.")
    return [folder / name for name in names]


def _open(path: Path) -> _ArrowTable:
    import pyarrow as pa

    try:
        mapped = pa.memory_map(str(path))
        end = mapped.read_at(len(_END), max(0, mapped.size() - len(_END)))
        # Batches are views of the mapped file: only what is looked at is read from the disk
        table = pa.ipc.open_stream(mapped).read_all()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, first_line(error)) from error
    if end != _END:
        raise _damaged(path, "it is cut short")
    return _ArrowTable(table)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a readable Arrow stream: {why}.\n  Copy the dataset's folder again."
    )


@dataclass(frozen=True)
class _ArrowTable:
    """An open file; its chunks are record batches."""

    table: Any

    @property
    def schema(self) -> Any:
        return self.table.schema

    @cached_property
    def _batches(self) -> list[Any]:
        return list(self.table.to_batches())

    @property
    def chunk_rows(self) -> Sequence[int]:
        return [batch.num_rows for batch in self._batches]

    def chunk(self, number: int, column: str) -> Any:
        values = self._batches[number].column(column)
        # Reading of a damaged file by its wrong offsets would end the process; images are not read
        values.validate(full=True)
        return values

    def check_chunks(self, column: str) -> None:
        """They are not read as a whole."""
