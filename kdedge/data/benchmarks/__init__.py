"""The benchmark sets: one file a set, found by its name, which is that of CoOp's config file.

A set's file holds `SET`.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from kdedge.data.benchmarks._benchmark import Benchmark
from kdedge.data.benchmarks._coop_set import CoopSet
from kdedge.data.benchmarks._coop_split import PARTS, Split, open_part, read_split
from kdedge.data.benchmarks._download import Download
from kdedge.data.benchmarks._origins import MissingPartsError, is_there
from kdedge.errors import DataError

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


def list_benchmarks() -> list[str]:
    """Gives the names of the sets, without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.name.startswith("_"))


def load_benchmark(name: str) -> Benchmark:
    """Gives one benchmark set.

    Raises:
        DataError: there is none of that name.
    """
    known = list_benchmarks()
    if name not in known:
        raise DataError(f"{name} is not a known benchmark set.\n  Known: {', '.join(known)}.")
    benchmark: Benchmark = importlib.import_module(f"{__name__}.{name}").SET
    return benchmark
