"""Parquet files with images in their rows: bytes, or the struct of bytes and path of `datasets`.

The `datasets` package copies the two columns once into Arrow files in its cache, from which single
images can be read. From the Parquet file, each read takes a whole row group, about 100 times
slower.
"""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdedge.data.sources._tables import (
    Columns,
    TableFile,
    TableSource,
    arrow_errors,
    choose_columns,
    quiet_datasets,
    read_features,
)
from kdedge.errors import DataError, explain_os_error
from kdedge.files import FileStamp, check_regular, home_path
from kdedge.messages import first_line
from kdedge.packages import PACKAGES

# Rows that are copied at once; `datasets` writes row groups of images of this size
_ROWS_AT_ONCE = 100
log = logging.getLogger(__name__)


def open_source(
    pattern: str,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    class_names: Sequence[str],
    labeled: bool,
) -> TableSource:
    """Opens local Parquet files.

    Args:
        pattern: a file, a folder of `.parquet` files, or a pattern with `*`.
        image_column: name of the column; None for the only column of images.
        label_column: name of the column; None to find it by the features or by its name.
        class_names: in class-list order; used if `labeled`.
        labeled: read labels: class names, or numbers, which are positions in the class list
            unless the file's features name them.

    Raises:
        DataError: no such file, one that is damaged or has other columns, or a label that is not a
            class name.
        ResourceError: the cache of `datasets` cannot be written.
        MissingPackage: datasets is not installed.
    """
    datasets = PACKAGES["datasets"].load()
    files = [_open(path) for path in _find_files(pattern)]
    columns = choose_columns(files, image_column=image_column, label_column=label_column)
    dataset = _copy(datasets, files, columns)
    return TableSource(dataset, files, columns, class_names, labeled=labeled)


def _find_files(pattern: str) -> list[Path]:
    """The files of a pattern, sorted by name.

    Raises:
        DataError: there are no such files.
    """
    path = home_path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        files = sorted(path.glob("*.parquet"))
    else:
        names = glob.iglob(str(path), recursive=True)  # noqa: PTH207 - takes absolute patterns
        files = sorted(file for file in map(Path, names) if file.is_file())
    if not files:
        raise DataError(
            f"{pattern} does not match any Parquet file.\n"
            '  Name a file, a folder of .parquet files, or a pattern such as "train-*.parquet".'
        )
    return files


def _open(path: Path) -> TableFile:
    """Reads a file's footer."""
    import pyarrow.parquet as pq

    try:
        check_regular(path)
        stamp = FileStamp.of(path.stat())
        with pq.ParquetFile(path) as file:
            return TableFile(path, file.schema_arrow, file.metadata.num_rows, stamp)
    except arrow_errors() as error:
        raise _damaged_error(path, error) from error


def _copy(datasets: Any, files: Sequence[TableFile], columns: Columns) -> Any:
    """Copies the used columns into a dataset, or uses an earlier copy in the cache."""
    import pyarrow.parquet as pq

    names = [name for name in (columns.image, columns.label) if name is not None]
    features = read_features(files[0].schema.remove_metadata())  # images stay bytes
    log.info(
        f"{files[0].path}: the datasets package copies the images into its cache, unless they are"
        " there."
    )
    try:
        with quiet_datasets(datasets):
            return datasets.load_dataset(
                "parquet",
                data_files=[glob.escape(str(file.path.absolute())) for file in files],
                split="train",
                columns=names,
                features=datasets.Features({name: features[name] for name in names}),
                batch_size=_ROWS_AT_ONCE,
            )
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if isinstance(cause, OSError) and cause.errno is not None:
            raise explain_os_error(cause, Path(datasets.config.HF_DATASETS_CACHE)) from error
        for file in files:  # finds the damaged one
            try:
                for _ in pq.ParquetFile(file.path).iter_batches(_ROWS_AT_ONCE, columns=names):
                    pass
            except arrow_errors() as own:
                raise _damaged_error(file.path, own) from error
        raise _damaged_error(files[0].path, cause) from error
    except OSError as error:
        raise explain_os_error(error, Path(datasets.config.HF_DATASETS_CACHE)) from error


def _damaged_error(path: Path, error: BaseException) -> DataError:
    return DataError(
        f"{path} is not a readable Parquet file: {first_line(error)}.\n  Copy or download it again."
    )
