"""The benchmark sets on disk, and a look through somebody's own images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdedge.data.benchmarks import Benchmark, Download, list_benchmarks, load_benchmark
from kdedge.data.fetch import Fetched, fetch, missing
from kdedge.data.survey import Survey, survey
from kdedge.data.verify import Verification, verify
from kdedge.errors import DataError


@dataclass(frozen=True)
class BenchmarkSet:
    """A benchmark set, and what of it is on this machine.

    Attributes:
        benchmark: what is published: classes, images, license, files.
        folder: where it is or would be.
        missing: files that are not there; None where the folder may not be looked into.
    """

    benchmark: Benchmark
    folder: Path
    missing: tuple[Download, ...] | None

    @property
    def is_here(self) -> Literal["yes", "no", "partly", "unknown"]:
        """How much of it is there."""
        if self.missing is None:
            return "unknown"
        if not self.missing:
            return "yes"
        return "no" if len(self.missing) == len(self.benchmark.downloads) else "partly"


def list_sets(root: str | Path = "data") -> dict[str, BenchmarkSet]:
    """Lists the benchmark sets by name, and which of them are on this machine.

    Args:
        root: folder of the benchmark sets.

    Raises:
        SetupError: an installed package's set cannot be loaded.
    """
    return {name: _look_at(name, Path(root)) for name in list_benchmarks()}


def open_set(name: str, root: str | Path = "data") -> BenchmarkSet:
    """Tells what a benchmark set holds and what of it is missing here.

    Args:
        name: of the set.
        root: folder of the benchmark sets.

    Raises:
        DataError: there is no such set, or its folder may not be looked into.
        SetupError: it is an installed package's and cannot be loaded.
    """
    benchmark = load_benchmark(name)
    folder = Path(root) / benchmark.folder
    return BenchmarkSet(benchmark, folder, tuple(missing(benchmark.downloads, folder)))


def fetch_set(name: str, root: str | Path = "data") -> Fetched:
    """Fetches what is missing of a benchmark set and unpacks it.

    An interrupted fetch goes on where it stopped. Files are compared with their known sizes and
    hashes.

    Args:
        name: of the set.
        root: folder of the benchmark sets.

    Raises:
        DataError: there is no such set, or a file is not the published one.
        SetupError: a file has to be fetched by hand, or its server does not give it.
        ResourceError: there is no room, or the folder cannot be written.
        InUseError: another fetch works in it.
    """
    return fetch(load_benchmark(name), Path(root))


def verify_set(name: str, root: str | Path = "data", *, read_images: bool = False) -> Verification:
    """Compares a benchmark set's counts, class names and split with what is published.

    Args:
        name: of the set.
        root: folder of the benchmark sets.
        read_images: decode every image, too.

    Returns:
        What was found; `problems` is empty where all is as published.

    Raises:
        DataError: there is no such set.
    """
    return verify(load_benchmark(name), Path(root), read_images=read_images)


def scan_images(source: str | Path) -> Survey:
    """Reads every image of a source once: which are unreadable, how large, of which classes.

    Args:
        source: a folder, a CSV file of image paths, WebDataset shards such as
            `shards-{000..063}.tar`, Parquet files, or a Hugging Face dataset.

    Raises:
        DataError: it is missing, empty or malformed, or none of its images can be read.
        SetupError: the package that reads it is not installed.
    """
    return survey(str(source))


def _look_at(name: str, root: Path) -> BenchmarkSet:
    try:
        return open_set(name, root)
    except DataError:  # a folder that may not be looked into is no reason to list no other
        benchmark = load_benchmark(name)
        return BenchmarkSet(benchmark, root / benchmark.folder, None)
