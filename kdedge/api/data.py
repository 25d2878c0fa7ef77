"""Lists, fetches and verifies benchmark sets, and scans other images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdedge.data.benchmarks import Benchmark, Download, list_benchmarks, load_benchmark
from kdedge.data.classes import benchmark_root
from kdedge.data.fetch import Fetched, fetch
from kdedge.data.survey import Survey, survey
from kdedge.data.verify import Verification, verify


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
    return {name: open_set(name, data) for name in list_benchmarks()}


def open_set(name: str, data: str | Path | None = None) -> BenchmarkSet:
    """Describes a benchmark set, and finds which of its files are missing.

    Args:
        name: name of the set.
        data: folder of the benchmark sets; None for `$KDEDGE_DATA`, or `data` if it is not set.

    Raises:
        DataError: there is no such set.
    """
    benchmark, place = load_benchmark(name), benchmark_root(data)
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
    return fetch(load_benchmark(name), benchmark_root(data))


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
    return verify(load_benchmark(name), benchmark_root(data), read_images=read_images)


def scan_images(source: str | Path) -> Survey:
    """Reads every image of a source once: finds unreadable images, sizes and classes.

    Args:
        source: a folder, a CSV file of image paths, WebDataset shards such as
            `shards-{000..063}.tar`, Parquet files, or a Hugging Face dataset.

    Raises:
        DataError: the source is missing, empty or malformed, or no image can be read.
        SetupError: the package that reads it is not installed.
    """
    return survey(str(source))
