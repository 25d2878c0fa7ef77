"""The benchmark sets: two tables, of sets in CoOp's layout and of ImageNet's family.

Installed packages join through the entry-point group `kdedge.benchmarks`: an entry point's name is
that of the `Benchmark` that it points to.
"""

from __future__ import annotations

from kdedge.data.benchmarks._benchmark import (
    Benchmark,
    Download,
    HubArchive,
    MissingPartsError,
    by_hand,
)
from kdedge.data.benchmarks._coop import COOP_SETS, CoopSet
from kdedge.data.benchmarks._coop_split import PARTS, CoopSplit, open_part, read_split
from kdedge.data.benchmarks._imagenet import IMAGENET_SETS
from kdedge.errors import DataError, SetupError, suggestion
from kdedge.plugins import Plugins

__all__ = [
    "PARTS",
    "Benchmark",
    "CoopSet",
    "CoopSplit",
    "Download",
    "HubArchive",
    "MissingPartsError",
    "by_hand",
    "list_benchmarks",
    "load_benchmark",
    "open_part",
    "read_split",
]

_OWN: dict[str, Benchmark] = {known.name: known for known in (*COOP_SETS, *IMAGENET_SETS)}
_OUTSIDE = Plugins("benchmark set", "kdedge.data.benchmarks", "kdedge.benchmarks", {"": {}})


def list_benchmarks() -> list[str]:
    """Returns the names of the sets, without importing any package's."""
    return sorted({*_OWN, *_OUTSIDE.names()})


def load_benchmark(name: str) -> Benchmark:
    """Returns a benchmark set. A package's set cannot replace one of kdedge's.

    Raises:
        DataError: there is none of that name.
        SetupError: an installed package's set cannot be loaded.
    """
    if name in _OWN:
        return _OWN[name]
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
