"""The benchmark sets: two tables, of sets in CoOp's layout and of ImageNet's family.

Installed packages join through the entry-point group `kdedge.benchmarks`: an entry point's name is
that of the `Benchmark` that it points to.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from kdedge.data.benchmarks._benchmark import Benchmark, Download, MissingPartsError, is_there
from kdedge.data.benchmarks._coop import COOP_SETS, CoopSet
from kdedge.data.benchmarks._coop_split import PARTS, Split, open_part, read_split
from kdedge.data.benchmarks._imagenet import IMAGENET_SETS
from kdedge.errors import DataError, SetupError

__all__ = [
    "PARTS",
    "Benchmark",
    "CoopSet",
    "Download",
    "MissingPartsError",
    "Split",
    "is_there",
    "list_benchmarks",
    "load_benchmark",
    "open_part",
    "read_split",
]

_GROUP = "kdedge.benchmarks"
_OWN: dict[str, Benchmark] = {one.name: one for one in (*COOP_SETS, *IMAGENET_SETS)}


def list_benchmarks() -> list[str]:
    """Returns the names of the sets, without importing those of packages."""
    return sorted({*_OWN, *_outside()})


def load_benchmark(name: str) -> Benchmark:
    """Returns a benchmark set. A package's set cannot replace one of kdedge's.

    Raises:
        DataError: there is none of that name.
        SetupError: an installed package's set cannot be loaded.
    """
    if name in _OWN:
        return _OWN[name]
    point = _outside().get(name)
    if point is None:
        known = ", ".join(list_benchmarks())
        raise DataError(f"{name} is not a known benchmark set.\n  Known: {known}.")
    return _load_outside(point)


def _outside() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUP)}


def _load_outside(point: EntryPoint) -> Benchmark:
    try:
        found = point.load()
        is_usable = isinstance(found, Benchmark) and found.name == point.name
        reason = f"it is not a kdedge.data.benchmarks.Benchmark named {point.name!r}"
    except Exception as error:  # a foreign package may raise anything at import
        is_usable, reason = False, f"{type(error).__name__}: {error}".rstrip(".")
    if not is_usable:
        raise SetupError(
            f'The benchmark set "{point.name}" from {point.value} cannot be used: {reason}.\n'
            "  Update or remove the package that provides it."
        )
    assert isinstance(found, Benchmark)
    return found
