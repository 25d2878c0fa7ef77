"""Compares a benchmark set on disk with the published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.images import scan, with_reasons
from kdedge.data.sources import FileSource, is_file
from kdedge.errors import DataError
from kdedge.files import sha256_file
from kdedge.messages import option
from kdedge.paper.benchmark_sets import Benchmark, MissingPartsError
from kdedge.progress import progress
from kdedge.records.record import Record
from kdedge.records.tables import Table, Tabled
from kdedge.runtime.preprocess import UnreadableImage


@dataclass(frozen=True)
class VerifiedPart:
    """One part of a benchmark set, as it is on this machine.

    Attributes:
        part: train, val or test.
        n_images: images that the split lists.
        n_missing: listed images without a file.
        n_classes: classes with at least one image in this part.
        unreadable: images that cannot be read or decoded; None if they were not read.
    """

    part: str
    n_images: int
    n_missing: int
    n_classes: int
    unreadable: tuple[UnreadableImage, ...] | None


@dataclass(frozen=True)
class Verification(Record, Tabled):
    """The result of comparing a set.

    Attributes:
        name: the set.
        folder: the set's folder.
        n_classes: classes of the published set.
        parts: the parts that can be listed.
        problems: differences from the published set, one sentence each.
    """

    name: str
    folder: Path
    n_classes: int
    parts: tuple[VerifiedPart, ...]
    problems: tuple[str, ...]

    @property
    def table(self) -> Table:
        """A row for each part."""
        rows = [
            [
                part.part,
                f"{part.n_images:,}",
                f"{part.n_missing:,}",
                str(part.n_classes),
                "-" if part.unreadable is None else str(len(part.unreadable)),
            ]
            for part in self.parts
        ]
        return Table("", ("part", "images", "missing", "classes", "unreadable"), rows)

    @property
    def tables(self) -> list[Table]:
        """The set, and its parts."""
        rows = [["folder", str(self.folder)], ["classes", str(self.n_classes)]]
        return [Table("", (), rows, align="l"), *([self.table] if self.parts else [])]

    @property
    def notes(self) -> Sequence[str]:
        """The unreadable images, and the differences from the published set, if there are any."""
        is_read = any(part.unreadable is not None for part in self.parts)
        reading = "" if is_read else option("--images", "read_images=True")
        more = f" {reading} decodes the images, too." if reading else ""
        unreadable = [image for part in self.parts for image in part.unreadable or ()]
        return [*with_reasons(unreadable), *(self.problems or [f"All as published.{more}"])]


def verify(benchmark: Benchmark, root: Path, *, read_images: bool) -> Verification:
    """Compares a set's files, class names and parts with the published ones.

    Args:
        benchmark: the set.
        root: folder of all sets.
        read_images: also decode every image, besides a check that its file exists.
    """
    folder = root / benchmark.folder
    problems = [f"{folder / file.path} is missing." for file in benchmark.missing(root)]
    for file in benchmark.downloads:
        path = folder / file.path
        if file.sha256 is not None and path.is_file():
            sha256 = sha256_file(path)
            if sha256 != file.sha256:
                published = f"the published file {file.sha256}"
                problems.append(f"{path} has the SHA-256 {sha256}, {published}.")
    parts: list[VerifiedPart] = []
    try:
        class_names = benchmark.class_names(root)
        for name in benchmark.n_images:
            source = benchmark.open_source(root, part=name, class_names=class_names, labeled=True)
            part, part_problems = _verify_part(name, source, len(class_names), read_images)
            parts.append(part)
            problems += part_problems
    except MissingPartsError:  # these are already among the problems
        pass
    except DataError as error:
        problems.append(str(error))
    return Verification(benchmark.name, folder, benchmark.n_classes, tuple(parts), tuple(problems))


def _verify_part(
    name: str, source: FileSource, n_published_classes: int, read_images: bool
) -> tuple[VerifiedPart, list[str]]:
    """One part as it is on this machine, and its differences from the published one."""
    n_images = len(source.items)
    n_classes = len({item.label for item in source.items})
    missing = [
        item.key for i, item in enumerate(source.items) if not is_file(source.location(i).path)
    ]
    unreadable = None
    if read_images:
        with progress(f"reading {name}", n_images, unit="images") as advance:
            unreadable = scan(source, progress=advance).skipped
    problems = []
    if missing:
        problems.append(
            f"{name} lacks {len(missing)} of its {n_images} image files, for example"
            f" {missing[0]:.100}."
        )
    if n_classes != n_published_classes:
        problems.append(f"{name} has images of only {n_classes} of {n_published_classes} classes.")
    n_broken = len(unreadable or ()) - len(missing)
    if n_broken > 0:
        problems.append(f"{name} has {n_broken} images that cannot be read.")
    return VerifiedPart(name, n_images, len(missing), n_classes, unreadable), problems
