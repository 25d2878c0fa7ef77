"""Opens the source that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdedge.config.data_spec import DataSpec, SourceSpec
from kdedge.data.benchmark_sets import benchmark_root, load_benchmark_set
from kdedge.data.sources import (
    ImageSource,
    csv_list,
    folder,
    huggingface,
    parquet,
    synthetic,
    webdataset,
)
from kdedge.errors import DataError


def open_source(
    spec: SourceSpec, *, class_names: Sequence[str], labeled: bool, data: DataSpec
) -> ImageSource:
    """Opens the source that a recipe names and lists its images.

    Args:
        spec: names exactly one source.
        class_names: in class-list order.
        labeled: read labels, as positions in `class_names`; else they are ignored.
        data: says where the benchmark sets are.

    Raises:
        DataError: the source is missing, empty or malformed, or its labels do not fit the names.
        RecipeError: it is a benchmark set, and no installed package has any.
        MissingPackage: the source needs a package that is not installed.
    """
    labels: dict[str, Any] = {"class_names": class_names, "labeled": labeled}
    columns = spec.model_dump(include={"image_column", "label_column"})
    if spec.folder is not None:
        return folder.open_source(spec.folder, **labels)
    if spec.webdataset is not None:
        return webdataset.open_source(spec.webdataset, **labels)
    if spec.list is not None:
        return csv_list.open_source(spec.list, **labels)
    if spec.parquet is not None:
        return parquet.open_source(spec.parquet, **columns, **labels)
    if spec.huggingface is not None:
        return huggingface.open_source(spec.huggingface, part=spec.part, **columns, **labels)
    if spec.benchmark is not None:
        benchmark = load_benchmark_set(spec.benchmark)
        return benchmark.open_source(benchmark_root(data.root), part=spec.part, **labels)
    names = synthetic.CLASS_NAMES
    if labeled and tuple(class_names) != names:
        raise DataError(
            f"synthetic: {spec.synthetic} has its own {len(names)} class names, but the class"
            f" list has {len(class_names)} others.\n"
            f"  Set classes to {{synthetic: {spec.synthetic}}}."
        )
    return synthetic.open_source(part=spec.part, labeled=labeled)
