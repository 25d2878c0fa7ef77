"""The benchmark sets: one file a set, found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

from kdedge.data.benchmarks._coop_split import BenchmarkSource
from kdedge.data.benchmarks._download import Download
from kdedge.errors import DataError


class Benchmark(Protocol):
    """What the file of a benchmark set holds.

    Attributes:
        FOLDER: the set's folder below the folder of all sets.
        LICENSE: terms of its images, one sentence.
        DOWNLOADS: its files.
        N_CLASSES: classes that are published.
        N_IMAGES: part (train, val or test) -> images that are published.
    """

    FOLDER: str
    LICENSE: str
    DOWNLOADS: tuple[Download, ...]
    N_CLASSES: int
    N_IMAGES: Mapping[str, int]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Gives the set's class names in label order."""
        ...

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> BenchmarkSource:
        """Lists the images of an official part: train, val or test."""
        ...


def list_benchmarks() -> list[str]:
    """Gives the names of the sets, without importing them."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if not file.name.startswith("_"))


def load_benchmark(name: str) -> Benchmark:
    """Imports one benchmark set.

    Raises:
        DataError: there is none of that name.
    """
    known = list_benchmarks()
    if name not in known:
        raise DataError(f"{name} is not a known benchmark set.\n  Known: {', '.join(known)}.")
    return cast("Benchmark", importlib.import_module(f"{__name__}.{name}"))
