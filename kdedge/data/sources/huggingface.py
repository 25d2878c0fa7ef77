"""Hugging Face datasets: a folder that `save_to_disk` wrote, or a dataset on the Hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdedge.config.fields import HUB
from kdedge.data.sources._tables import (
    TableFile,
    TableSource,
    arrow_errors,
    choose_columns,
    quiet_datasets,
)
from kdedge.errors import DataError, SetupError
from kdedge.files import FileStamp, open_regular
from kdedge.messages import first_line
from kdedge.packages import PACKAGES

_STATE = "state.json"
_SPLITS = "dataset_dict.json"
# End mark of an Arrow stream; a truncated stream lacks it, but is read without an error
_END = b"\xff\xff\xff\xff\0\0\0\0"


def open_source(
    place: str | Path,
    *,
    part: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str],
    labeled: bool,
) -> TableSource:
    """Opens a dataset.

    Args:
        place: folder of one dataset or split, or `hf://datasets/OWNER/NAME`, followed by `/CONFIG`
            if the dataset has several.
        part: train, val or test; only for a dataset on the Hub.
        image_column: name of the column; None for the only column of images.
        label_column: name of the column; None to find it by the features or by its name.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels; their names must be in the class list.

    Raises:
        DataError: the place is not a dataset, a file is damaged or missing, there is no such
            column, or a label is not a class name.
        SetupError: the Hub cannot be reached and the dataset is not in the cache.
        MissingPackage: datasets is not installed.
    """
    datasets = PACKAGES["datasets"].load()
    is_on_hub = str(place).startswith(HUB)
    named = _fetch(datasets, str(place), part) if is_on_hub else _load(datasets, Path(place))
    paths = [Path(file["filename"]) for file in named.cache_files]
    parts = [_open(datasets, path) for path in paths]
    files = [
        TableFile(path, part.data.schema, len(part), FileStamp.of(path.stat()))
        for path, part in zip(paths, parts, strict=True)
    ]
    dataset = datasets.concatenate_datasets(parts)
    columns = choose_columns(files, image_column=image_column, label_column=label_column)
    return TableSource(dataset, files, columns, class_names, labeled=labeled)


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset, or contains splits of a dataset."""
    return (folder / _STATE).is_file() or (folder / _SPLITS).is_file()


def _fetch(datasets: Any, place: str, part: str) -> Any:
    """A dataset on the Hub, whose files `datasets` keeps in its cache."""
    match = re.fullmatch(rf"{HUB}(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w.-]*))?", place)
    if match is None:
        raise DataError(
            f"{place} does not name a dataset.\n  Write {HUB}OWNER/NAME, or .../NAME/CONFIG."
        )
    try:
        with quiet_datasets(datasets):
            split = "validation" if part == "val" else part
            return datasets.load_dataset(match[1], match[2], split=split)
    except ConnectionError as error:
        raise SetupError(
            f"{place} cannot be downloaded: {first_line(error)}.\n"
            "  Try again with a connection to the Hub, or copy the dataset here and name its"
            " Parquet files as parquet."
        ) from error
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(
            f"{place} cannot be used: {str(error).strip():.600}\n"
            "  Check the dataset's name, its configuration and the part."
        ) from error


def _load(datasets: Any, folder: Path) -> Any:
    """The dataset in a folder."""
    if (folder / _SPLITS).is_file():
        raise DataError(f"{folder} holds several splits.\n  Name the folder of one of them.")
    try:
        return datasets.load_from_disk(str(folder), keep_in_memory=False)
    except arrow_errors() as error:
        raise DataError(
            f"{folder} is not a dataset that save_to_disk wrote: {first_line(error)}.\n"
            "  Write it with dataset.save_to_disk(FOLDER), or name Parquet files as parquet."
        ) from error


def _open(datasets: Any, path: Path) -> Any:
    """Maps an Arrow file into memory as a dataset."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - len(_END)))
            is_complete = file.read() == _END
        dataset = datasets.Dataset.from_file(str(path))
    except arrow_errors() as error:
        reason = first_line(error)
    else:
        if is_complete:
            return dataset
        reason = "it is cut short"
    raise DataError(
        f"{path} is not a readable Arrow stream: {reason}.\n  Copy the dataset's folder again."
    )
