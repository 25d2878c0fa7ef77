"""The benchmark sets, which are rows of `sets.yaml`."""

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
from kdedge.errors import DataError
from kdedge.messages import suggestion

__all__ = [
    "PARTS",
    "Benchmark",
    "CoopSet",
    "Download",
    "HubArchive",
    "MissingPartsError",
    "benchmarks",
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


@functools.cache
def benchmarks() -> dict[str, Benchmark]:
    """The sets of `sets.yaml`, by name."""
    file = Path(__file__).with_name("sets.yaml")
    rows, _ = parse_yaml(file.read_text(encoding="utf-8"), name=str(file))
    return {
        name: TypeAdapter(_KINDS[row.pop("kind")]).validate_python({"name": name, **row})
        for name, row in rows.items()
    }


def list_benchmarks() -> list[str]:
    """Returns the names of the sets."""
    return sorted(benchmarks())


def load_benchmark(name: str) -> Benchmark:
    """Returns a benchmark set.

    Raises:
        DataError: there is no set of that name.
    """
    if name not in benchmarks():
        known = suggestion(name, list_benchmarks())
        raise DataError(f"{name} is not a known benchmark set.\n  {known}")
    return benchmarks()[name]
