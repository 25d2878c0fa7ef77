"""The benchmark sets, which are rows of `sets.yaml`."""

from __future__ import annotations

import functools
from pathlib import Path

from pydantic import TypeAdapter

from kdedge.config.yaml_file import parse_yaml
from kdedge.paper.benchmark_sets._benchmark import (
    Benchmark,
    Download,
    HubArchive,
    MissingPartsError,
    by_hand,
)
from kdedge.paper.benchmark_sets._coop import PARTS, AircraftSet, CoopSet, read_split
from kdedge.paper.benchmark_sets._imagenet import FolderSet

__all__ = [
    "PARTS",
    "Benchmark",
    "CoopSet",
    "Download",
    "HubArchive",
    "MissingPartsError",
    "benchmark_set",
    "by_hand",
    "read_split",
]

_KINDS: dict[str, type[Benchmark]] = {
    "coop": CoopSet,
    "aircraft": AircraftSet,
    "folders": FolderSet,
}


def benchmark_set(name: str) -> Benchmark:
    """Returns a set of `sets.yaml`.

    `pyproject.toml` has an entry point to this module for each of them.
    """
    return _rows()[name]


@functools.cache
def _rows() -> dict[str, Benchmark]:
    """The sets of `sets.yaml`, by name."""
    file = Path(__file__).with_name("sets.yaml")
    rows, _ = parse_yaml(file.read_text(encoding="utf-8"), name=str(file))
    return {
        name: TypeAdapter(_KINDS[row.pop("kind")]).validate_python({"name": name, **row})
        for name, row in rows.items()
    }
