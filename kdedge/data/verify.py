"""Compares a benchmark set on disk with the published one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.benchmarks import Benchmark, CoopSet, MissingPartsError
from kdedge.data.images import BadImage, scan
from kdedge.data.sources import FileSource
from kdedge.errors import DataError
from kdedge.files import sha256_file
from kdedge.progress import progress


@dataclass(frozen=True)
class PartFound:
    """One part of a set.

    Attributes:
        part: train, val or test.
        n_published: images that the published part has.
        n_listed: images that the split lists.
        n_missing: listed images without a file.
        first_missing: the first of them; None if there is none.
        n_classes: classes with at least one image in it.
        bad: images that cannot be decoded; None if they were not read.
    """

    part: str
    n_published: int
    n_listed: int
    n_missing: int
    first_missing: str | None
    n_classes: int
    bad: tuple[BadImage, ...] | None


@dataclass(frozen=True)
class Verification:
    """The result of comparing a set.

    Attributes:
        name: the set.
        folder: its folder.
        split: origin of its parts.
        n_classes_published: classes of the published set.
        n_classes: classes found; None if the class list cannot be read.
        parts: those that can be listed.
        problems: differences from the published set, one sentence each.
    """

    name: str
    folder: Path
    split: str
    n_classes_published: int
    n_classes: int | None
    parts: tuple[PartFound, ...]
    problems: tuple[str, ...]


def verify(benchmark: Benchmark, root: Path, *, read_images: bool) -> Verification:
    """Compares a set's files, class names and parts with the published ones.

    Args:
        benchmark: the set.
        root: folder of all sets.
        read_images: also decode every image; else only check that its file exists.
    """
    folder = root / benchmark.folder
    problems = [f"{folder / file.path} is missing." for file in benchmark.missing(root)]
    problems += _wrong_files(benchmark, folder)
    parts: list[PartFound] = []
    class_names: tuple[str, ...] | None = None
    try:
        class_names = benchmark.class_names(root)
        for part in benchmark.n_images:
            source = benchmark.open_source(root, part=part, class_names=class_names, labeled=True)
            parts.append(_survey_part(benchmark, part, source, read_images=read_images))
    except MissingPartsError:  # these are already among the problems
        pass
    except DataError as error:
        problems.append(str(error))
    for found in parts:
        problems += _part_problems(found, len(class_names or ()))
    if class_names is not None and len(class_names) != benchmark.n_classes:
        problems.append(
            f"It has {len(class_names)} classes, the published set has {benchmark.n_classes}."
        )
    lists = benchmark.lists[0] if isinstance(benchmark, CoopSet) else ""
    return Verification(
        name=benchmark.name,
        folder=folder,
        split=f"CoOp's, {lists}" if lists.endswith(".json") else "the set's own",
        n_classes_published=benchmark.n_classes,
        n_classes=None if class_names is None else len(class_names),
        parts=tuple(parts),
        problems=tuple(problems),
    )


def _wrong_files(benchmark: Benchmark, folder: Path) -> Iterator[str]:
    """Files whose hash differs from the published one."""
    for file in benchmark.downloads:
        path = folder / file.path
        if file.sha256 is not None and path.is_file():
            sha256 = sha256_file(path)
            if sha256 != file.sha256:
                yield f"{path} has the SHA-256 {sha256}, the published file {file.sha256}."


def _survey_part(
    benchmark: Benchmark, part: str, source: FileSource, *, read_images: bool
) -> PartFound:
    n_images = len(source.items)
    missing_keys = [
        item.key
        for i, item in enumerate(source.items)
        if not os.path.isfile(source.location(i).path)  # noqa: PTH113 - raises nothing
    ]
    bad = None
    if read_images:
        with progress(f"reading {part}", n_images, unit="images") as advance:
            bad = scan(source, progress=advance).bad
    return PartFound(
        part=part,
        n_published=benchmark.n_images[part],
        n_listed=n_images,
        n_missing=len(missing_keys),
        first_missing=next(iter(missing_keys), None),
        n_classes=len({item.label for item in source.items}),
        bad=bad,
    )


def _part_problems(part: PartFound, n_classes: int) -> Iterator[str]:
    if part.n_listed != part.n_published:
        published = part.n_published
        yield f"{part.part} has {part.n_listed} images, the published set has {published}."
    if part.n_missing:
        yield (
            f"{part.part} lacks {part.n_missing} of its {part.n_listed} image files, for example"
            f" {part.first_missing:.100}."
        )
    if part.n_classes != n_classes:
        yield f"{part.part} has images of only {part.n_classes} of {n_classes} classes."
    n_broken = len(part.bad or ()) - part.n_missing
    if n_broken > 0:
        yield f"{part.part} has {n_broken} images that cannot be read."
