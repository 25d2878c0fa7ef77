"""Lists, fetches and verifies benchmark sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdedge.data.benchmark_sets import (
    benchmark_root,
    list_benchmark_sets,
    load_benchmark_set,
)
from kdedge.errors import SetupError
from kdedge.paper.benchmark_sets import Benchmark, Download
from kdedge.paper.benchmark_sets.fetch import Fetched, fetch
from kdedge.paper.benchmark_sets.verify import Verification, verify


@dataclass(frozen=True)
class BenchmarkSet:
    """A benchmark set, and which of its files are on this machine.

    Attributes:
        benchmark: published facts: classes, images, license, files.
        folder: the set's folder, whether it exists or not.
        missing: files that are not in it.
    """

    benchmark: Benchmark
    folder: Path
    missing: tuple[Download, ...]

    @property
    def status(self) -> Literal["yes", "no", "partly"]:
        """Whether its files are on this machine."""
        if not self.missing:
            return "yes"
        return "no" if len(self.missing) == len(self.benchmark.downloads) else "partly"


def list_sets(data: str | Path | None = None) -> dict[str, BenchmarkSet]:
    """Lists the benchmark sets by name, and which of them are on this machine.

    Args:
        data: folder of the benchmark sets; None for `$KDEDGE_DATA`, or `data` if it is not set.
    """
    return {name: open_set(name, data) for name in list_benchmark_sets()}


def open_set(name: str, data: str | Path | None = None) -> BenchmarkSet:
    """Describes a benchmark set, and finds which of its files are missing.

    Args:
        name: name of the set.
        data: folder of the benchmark sets; None for `$KDEDGE_DATA`, or `data` if it is not set.

    Raises:
        DataError: there is no such set.
    """
    benchmark = _load(name)
    place = benchmark_root(data)
    return BenchmarkSet(benchmark, place / benchmark.folder, benchmark.missing(place))


def fetch_set(name: str, data: str | Path | None = None) -> Fetched:
    """Downloads the missing files of a benchmark set and unpacks them.

    They come from the Hugging Face Hub; an interrupted download continues where it stopped.

    Args:
        name: name of the set.
        data: folder of the benchmark sets; None for `$KDEDGE_DATA`, or `data` if it is not set.

    Raises:
        DataError: there is no such set, or a file is not the published one.
        SetupError: a file must be fetched by hand, or the Hub does not provide it.
        ResourceError: the disk is full, or the folder cannot be written.
        InUseError: another fetch uses the folder.
    """
    return fetch(_load(name), benchmark_root(data))


def verify_set(
    name: str, data: str | Path | None = None, *, read_images: bool = False
) -> Verification:
    """Compares a benchmark set's counts, class names and split with the published ones.

    Args:
        name: name of the set.
        data: folder of the benchmark sets; None for `$KDEDGE_DATA`, or `data` if it is not set.
        read_images: also decode every image.

    Returns:
        The comparison; `problems` is empty if the set is as published.

    Raises:
        DataError: there is no such set.
    """
    return verify(_load(name), benchmark_root(data), read_images=read_images)


def _load(name: str) -> Benchmark:
    """A benchmark set of an installed package, with what is published about it."""
    loaded = load_benchmark_set(name)
    if not isinstance(loaded, Benchmark):
        raise SetupError(
            f'The benchmark set "{name}" is a {type(loaded).__name__}, expected a'
            " kdedge.paper.benchmark_sets.Benchmark.\n"
            "  Update or remove the package that it comes from."
        )
    return loaded
