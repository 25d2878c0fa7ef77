"""The benchmark sets, which are rows of `sets.yaml`.

Installed packages join through the entry-point group `kdedge.benchmarks`: an entry point's name is
that of the `Benchmark` that it points to.
"""

from __future__ import annotations

import functools
from pathlib import Path

from pydantic import TypeAdapter

from kdedge.config.yaml_file import parse_yaml
from kdedge.data.benchmarks._benchmark import (
    Benchmark,
    Download,
    HubArchive,
    MissingPartsError,
    by_hand,
)
from kdedge.data.benchmarks._coop import PARTS, AircraftSet, CoopSet, read_split
from kdedge.data.benchmarks._imagenet import FolderSet
from kdedge.errors import DataError, SetupError, suggestion
from kdedge.plugins import Plugins

__all__ = [
    "PARTS",
    "Benchmark",
    "CoopSet",
    "Download",
    "HubArchive",
    "MissingPartsError",
    "by_hand",
    "list_benchmarks",
    "load_benchmark",
    "read_split",
]

_KINDS: dict[str, type[Benchmark]] = {
    "coop": CoopSet,
    "aircraft": AircraftSet,
    "folders": FolderSet,
}
_OUTSIDE = Plugins("benchmark set", "kdedge.data.benchmarks", "kdedge.benchmarks", {"": {}})


@functools.cache
def _own() -> dict[str, Benchmark]:
    """The sets of `sets.yaml`, by name."""
    file = Path(__file__).with_name("sets.yaml")
    rows, _ = parse_yaml(file.read_text(encoding="utf-8"), name=str(file))
    return {
        name: TypeAdapter(_KINDS[row.pop("kind")]).validate_python({"name": name, **row})
        for name, row in rows.items()
    }


def list_benchmarks() -> list[str]:
    """Returns the names of the sets, without importing any package's."""
    return sorted({*_own(), *_OUTSIDE.names()})


def load_benchmark(name: str) -> Benchmark:
    """Returns a benchmark set. A package's set cannot replace one of kdedge's.

    Raises:
        DataError: there is none of that name.
        SetupError: an installed package's set cannot be loaded.
    """
    if name in _own():
        return _own()[name]
    point = _OUTSIDE.outside().get(name)
    if point is None:
        raise DataError(
            f"{name} is not a known benchmark set.\n  {suggestion(name, list_benchmarks())}"
        )
    benchmark = getattr(_OUTSIDE.load(name), point.attr, None)
    if not isinstance(benchmark, Benchmark) or benchmark.name != name:
        raise SetupError(
            f'The benchmark set "{name}" from {point.value} is not a'
            f" kdedge.data.benchmarks.Benchmark named {name!r}.\n"
            "  Update or remove the package that it comes from."
        )
    return benchmark
