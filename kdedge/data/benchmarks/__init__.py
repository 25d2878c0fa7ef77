"""The benchmark sets: one file a set, found by its name, which is that of CoOp's config file."""

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
        FOLDER: the set's folder below that of all sets, as CoOp's DATASETS.md names it.
        TEMPLATE: text around a class name, as in CoOp's trainers/zsclip.py: CUSTOM_TEMPLATES.
        LICENSE: terms of its images, one sentence.
        N_CLASSES: of the published split.
        N_IMAGES: part (train, val or test) -> images of the published split.
        DOWNLOADS: the files of the published set, without what only the set's own rule reads.
    """

    FOLDER: str
    TEMPLATE: str
    LICENSE: str
    N_CLASSES: int
    N_IMAGES: Mapping[str, int]
    DOWNLOADS: tuple[Download, ...]

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Gives the set's class names in label order.

        Args:
            root: folder of the benchmark sets.

        Raises:
            DataError: what tells the names is missing, or is not the published set.
        """
        ...

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> BenchmarkSource:
        """Lists the images of a part.

        Args:
            root: folder of the benchmark sets.
            part: train, val or test.
            class_names: in class-list order; used where `labeled`.
            labeled: labels are positions in `class_names`.

        Raises:
            DataError: the set is not there or not the published one, it has no such part, or the
                class list lacks some of its names.
        """
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
