"""The benchmark sets that recipes name. Packages add them by entry points, as `kdedge.paper` does.

The core has none of its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from kdedge.data.sources import ImageSource
from kdedge.errors import DataError, RecipeError
from kdedge.files import home_path
from kdedge.messages import suggestion
from kdedge.plugins import Plugins

_SETS = Plugins(
    noun="benchmark set",
    package=None,
    group="kdedge.benchmark_sets",
    parts={
        "": {
            "benchmark_set": "a function that takes the set's name and returns a"
            " kdedge.paper.benchmark_sets.Benchmark."
        }
    },
)


class BenchmarkSet(Protocol):
    """What a recipe needs of a benchmark set."""

    def class_names(self, root: Path) -> tuple[str, ...]:
        """Returns the names in label order.

        Args:
            root: folder of the benchmark sets.

        Raises:
            DataError: the file of class names is missing, or differs from the published one.
        """

    def open_source(
        self, root: Path, *, part: str, class_names: Sequence[str], labeled: bool
    ) -> ImageSource:
        """Opens a part.

        Args:
            root: folder of the benchmark sets.
            part: train, val or test.
            class_names: in class-list order; used where `labeled`.
            labeled: labels are positions in `class_names`.

        Raises:
            DataError: the set is missing or differs from the published one, there is no such part,
                or the class list lacks some of the set's names.
        """


def list_benchmark_sets() -> tuple[str, ...]:
    """Returns the names of the sets, sorted."""
    return _SETS.names()


def load_benchmark_set(name: str) -> BenchmarkSet:
    """Returns a benchmark set.

    Raises:
        RecipeError: no installed package has benchmark sets.
        DataError: there is no set of that name.
        SetupError: the package that has the set cannot be imported.
    """
    known = list_benchmark_sets()
    if not known:
        raise RecipeError(
            f"The recipe has benchmark: {name}, but no installed package has benchmark sets.\n"
            "  Install all of kdedge: its package kdedge.paper has the published sets. Or name"
            " images and classes of your own in the recipe."
        )
    if name not in known:
        raise DataError(f"{name} is not a known benchmark set.\n  {suggestion(name, known)}")
    return cast(BenchmarkSet, _SETS.load(name).benchmark_set(name))


def benchmark_root(root: str | Path | None) -> Path:
    """Returns the folder of the benchmark sets: the given one, else KDEDGE_DATA, else ./data."""
    return home_path(root or os.environ.get("KDEDGE_DATA") or "data")
