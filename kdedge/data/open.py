"""Opens the source that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.config.data_spec import SOURCES, DataSpec, SourceSpec
from kdedge.data.benchmarks import load_benchmark
from kdedge.data.classes import benchmark_root
from kdedge.data.sources import ImageSource, csv_list, folder, huggingface, parquet, webdataset
from kdedge.errors import DataError, RecipeError


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
        MissingPackage: the source needs a package that is not installed.
    """
    if spec.folder is not None:
        return folder.open_source(spec.folder, class_names=class_names, labeled=labeled)
    if spec.webdataset is not None:
        return webdataset.open_source(spec.webdataset, class_names=class_names, labeled=labeled)
    if spec.list is not None:
        return csv_list.open_source(spec.list, class_names=class_names, labeled=labeled)
    columns = {"image_column": spec.image_column, "label_column": spec.label_column}
    if spec.parquet is not None:
        return parquet.open_source(
            spec.parquet, **columns, class_names=class_names, labeled=labeled
        )
    if spec.huggingface is not None:
        return huggingface.open_source(
            spec.huggingface,
            part=spec.part,
            **columns,
            class_names=class_names,
            labeled=labeled,
        )
    if spec.benchmark is not None:
        benchmark = load_benchmark(spec.benchmark)
        return benchmark.open_source(
            benchmark_root(data), part=spec.part, class_names=class_names, labeled=labeled
        )
    if spec.synthetic is not None:
        return _open_synthetic(spec.synthetic, spec.part, class_names, labeled=labeled)
    raise RecipeError(
        f"a data source does not name any images.\n  Give it one of {', '.join(SOURCES)}."
    )


def _open_synthetic(
    name: str, part: str, class_names: Sequence[str], *, labeled: bool
) -> ImageSource:
    from kdedge.data.sources import synthetic

    names = synthetic.class_names(name)
    if labeled and tuple(class_names) != tuple(names):
        raise DataError(
            f"synthetic: {name} has its own {len(names)} class names, but the class list has"
            f" {len(class_names)} others.\n  Set classes to {{synthetic: {name}}}."
        )
    return synthetic.open_source(name, part=part, labeled=labeled)
