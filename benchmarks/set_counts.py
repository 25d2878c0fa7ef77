"""Classes and images of each benchmark set: as published, and as they are on this disk.

    python benchmarks/set_counts.py --data /data/sets

Up to three rows a set: the published counts (arXiv:2403.02781, table 8; val by difference), what
CoOp's split file or the set's folders give, and what the set's own rule gives, which divides the
images where there is no such file. A count that is not the published one ends with `!`. The last
two need the set's files. Base and novel are the test images of the first half of the classes and
of the others.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from kdedge.cli._output import table
from kdedge.data.benchmarks import Benchmark, CoopSet, Split, list_benchmarks, load_benchmark
from kdedge.data.split import base_novel
from kdedge.errors import KdedgeError

COLUMNS = ("classes", "train", "val", "test", "base", "novel")
TEST_HALVES = {
    "imagenet": (25_000, 25_000),
    "caltech101": (1_549, 916),
    "oxford_pets": (1_881, 1_788),
    "stanford_cars": (4_002, 4_039),
    "oxford_flowers": (1_053, 1_410),
    "food101": (15_300, 15_000),
    "fgvc_aircraft": (1_666, 1_667),
    "sun397": (9_950, 9_900),
    "dtd": (864, 828),
    "eurosat": (4_200, 3_900),
    "ucf101": (1_934, 1_849),
}
"""Test images of base and of novel classes; arXiv:2403.02781, table 8."""

Counts = dict[str, int | None]


def published(benchmark: Benchmark) -> Counts:
    """The paper's counts; None where it has none."""
    base, novel = TEST_HALVES.get(benchmark.name, (None, None))
    parts = {part: benchmark.n_images.get(part) for part in ("train", "val", "test")}
    return {"classes": benchmark.n_classes, **parts, "base": base, "novel": novel}


def counts_of(split: Split) -> Counts:
    """What a split has."""
    n_base = len(base_novel(len(split.class_names))[0])
    is_base = [label < n_base for _, label in split.parts.get("test", ())]
    parts = {part: len(rows) for part, rows in split.parts.items()}
    halves = {"base": sum(is_base), "novel": len(is_base) - sum(is_base)}
    return {"classes": len(split.class_names), **parts, **halves}


def found(benchmark: Benchmark, root: Path) -> Iterator[tuple[str, Counts]]:
    """What is on this disk: where from, and its counts.

    Raises:
        KdedgeError: a file of the set is damaged, or the set has other images than the published.
    """
    folder = root / benchmark.folder
    if not isinstance(benchmark, CoopSet):
        if folder.exists():
            yield "its folders", counts_of(folders_split(benchmark, root))
        return
    if benchmark.has_split(folder):
        yield "split file", counts_of(benchmark.read_split(folder))
    if all((folder / path).exists() for path in benchmark.own_reads):
        yield "own rule", counts_of(benchmark.own_split(folder))


def folders_split(benchmark: Benchmark, root: Path) -> Split:
    """A set whose folders are its split; of a variant of ImageNet, its test images."""
    names = benchmark.class_names(root)
    parts = {}
    for part in benchmark.n_images:
        source = benchmark.open_source(root, part=part, class_names=names, labeled=True)
        parts[part] = tuple((item.key, item.label or 0) for item in source.items)
    return Split(names, parts)


def rows_of(benchmark: Benchmark, root: Path) -> Iterator[list[str]]:
    """The table's rows of one set."""
    paper = published(benchmark)
    yield [benchmark.name, "paper", *(_shown(paper[column], None) for column in COLUMNS)]
    try:
        for origin, counts in found(benchmark, root):
            cells = (_shown(counts.get(column), paper[column]) for column in COLUMNS)
            yield ["", origin, *cells]
    except KdedgeError as error:
        yield ["", str(error).splitlines()[0], *[""] * len(COLUMNS)]


def _shown(count: int | None, expected: int | None) -> str:
    if count is None:
        return "-"
    return f"{count:,}" + ("!" if expected is not None and count != expected else "")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("KDEDGE_DATA") or "data"))
    root = parser.parse_args().data
    rows = [row for name in list_benchmarks() for row in rows_of(load_benchmark(name), root)]
    print(table(rows, header=["set", "from", *COLUMNS], align="ll" + "r" * len(COLUMNS)))


if __name__ == "__main__":
    main()
