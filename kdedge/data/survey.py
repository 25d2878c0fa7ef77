"""Surveys the user's images: readability, sizes and classes, of all or of a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kdedge.config.fields import HUB
from kdedge.data.images import check_limit, read_facts, scanned, with_reasons
from kdedge.data.scan_cache import ImageFacts
from kdedge.data.sources import ImageSource, csv_list, folder, huggingface, parquet, webdataset
from kdedge.errors import DataError
from kdedge.messages import name_some
from kdedge.progress import progress
from kdedge.records.record import Record
from kdedge.records.tables import Table, Tabled
from kdedge.runtime.preprocess import UnreadableImage


@dataclass(frozen=True)
class Survey(Record, Tabled):
    """Facts of a source's images.

    Attributes:
        kind: folder, list, webdataset, parquet or huggingface: the recipe's key.
        n_images: images in all.
        n_read: number of images that were decoded.
        unreadable: images that cannot be read or decoded.
        n_duplicates: readable images with the same bytes as an earlier one.
        sizes_px: ((width, height), number of readable images), the most frequent first.
        classes: (class name, number of images), sorted by name or in class-list order; empty if
            there are no labels.
        n_unlabeled: images without a class.
        left_out: (kind, number of files) for files of a folder that are not read as images.
        twins: images of a folder that differ from another only in their extension, such as masks;
            only `survey_sample` looks for them.
    """

    kind: str
    n_images: int
    n_read: int
    unreadable: tuple[UnreadableImage, ...]
    n_duplicates: int
    sizes_px: tuple[tuple[tuple[int, int], int], ...]
    classes: tuple[tuple[str, int], ...]
    n_unlabeled: int
    left_out: tuple[tuple[str, int], ...]
    twins: tuple[str, ...] = ()

    @property
    def table(self) -> Table:
        """The kind of source, and the summary."""
        rows = [["images" if i == 0 else "", line] for i, line in enumerate(self.lines())]
        return Table("", (), [["source", self.kind], *rows], align="l")

    @property
    def tables(self) -> list[Table]:
        """The summary, and the number of images of each class."""
        rows = [[name, f"{count:,}"] for name, count in self.classes]
        return [self.table, *([Table("", ("class", "images"), rows)] if rows else [])]

    @property
    def notes(self) -> list[str]:
        """The unreadable images, each with the reason."""
        return with_reasons(self.unreadable)

    @property
    def absent(self) -> list[str]:
        """The classes without an image."""
        return [name for name, n in self.classes if not n]

    def lines(self) -> list[str]:
        """The summary as lines; the number of images comes first."""
        sizes = [f"{width}x{height}" for (width, height), _ in self.sizes_px]
        text = " and ".join(sizes[:2])
        if len(sizes) > 2:
            sides = [min(size) for size, _ in self.sizes_px]
            text += f" and {len(sizes) - 2} other sizes, shorter side {min(sides)} to {max(sides)}"
        lines = [f"{self.n_images:,}, of {text}"]
        if self.unreadable:
            n_read = f"{self.n_read:,}{' opened' if self.n_read < self.n_images else ''}"
            n = len(self.unreadable)
            first = self.unreadable[0].key
            lines.append(f"{n:,} of {n_read} cannot be read, such as {first}")
        if self.n_duplicates:
            lines.append(f"{self.n_duplicates:,} of {self.n_read:,} are copies of others")
        present = [n for _, n in self.classes if n]
        if present:
            low, high = min(present), max(present)
            per_class = f"{low}" if low == high else f"{low} to {high}"
            images = "image" if high == 1 else "images"
            lines.append(f"{per_class} {images} per class, {len(present)} classes")
            lines += [f"no images of {name_some(self.absent)}"] if self.absent else []
        if self.n_unlabeled and present:
            lines.append(f"{self.n_unlabeled:,} without a class")
        if self.twins:
            n = len(self.twins)
            have = "images have" if n > 1 else "image has"
            lines.append(f"{n:,} {have} the name of another one, such as {self.twins[0]}: masks?")
            lines.append("They count as images; move them out of the folder.")
        if self.left_out:
            lines.append(f"skipped: {folder.left_out_text(dict(self.left_out))}")
        return lines


def _survey(
    kind: str,
    place: str,
    source: ImageSource,
    found: Mapping[int, ImageFacts | str],
    classes: Iterable[tuple[str, int]],
    n_unlabeled: int,
    twins: Iterable[str] = (),
) -> Survey:
    images = scanned(source, found)
    check_limit(images, len(images.skipped), place)
    sizes_px = Counter(facts.size_px for facts in found.values() if isinstance(facts, ImageFacts))
    n_readable = len(images.indices)
    return Survey(
        kind=kind,
        n_images=len(source.items),
        n_read=len(found),
        unreadable=images.skipped,
        n_duplicates=n_readable - len(set(images.digests.values())),
        sizes_px=tuple(sorted(sizes_px.items(), key=lambda pair: (-pair[1], pair[0]))),
        classes=tuple(classes),
        n_unlabeled=n_unlabeled,
        left_out=tuple(sorted(getattr(source, "left_out", {}).items())),
        twins=tuple(twins),
    )


def survey(place: str) -> Survey:
    """Reads and decodes every image of a source once.

    Args:
        place: a folder of images, of Parquet files or of a Hugging Face dataset; a `.csv` file; a
            `.tar` or `.parquet` file, or a pattern for several.

    Raises:
        DataError: the source is missing, empty or malformed, or none of its images can be read.
        MissingPackage: the package that reads it, webdataset or datasets, is not installed.
    """
    kind, source, labels = _open(place)
    with progress(f"reading {place}", len(source.items), unit="images") as advance:
        found = read_facts(source, progress=advance)
    counts = Counter(labels)
    n_unlabeled = counts.pop("", 0)
    return _survey(kind, place, source, found, sorted(counts.items()), n_unlabeled)


def _open(place: str) -> tuple[str, ImageSource, Iterable[str]]:
    """Returns a source's kind, its images, and each image's label as text, "" if it has none."""
    place = str(Path(place).expanduser()) if place.startswith("~/") else place
    if place.endswith(".tar"):
        shards = webdataset.open_source(place, class_names=(), labeled=False)
        return "webdataset", shards, webdataset.label_texts(place)
    path = Path(place)
    if place.endswith(".parquet") or (path.is_dir() and any(path.glob("*.parquet"))):
        tables = parquet.open_source(place, class_names=(), labeled=False)
        return "parquet", tables, tables.label_texts()
    if place.startswith(HUB) or huggingface.is_dataset(path):
        tables = huggingface.open_source(place, class_names=(), labeled=False)
        return "huggingface", tables, tables.label_texts()
    if path.suffix.lower() == ".csv" and not path.is_dir():
        listed = csv_list.open_source(path, class_names=(), labeled=False)
        return "list", listed, csv_list.label_texts(path)
    files = folder.open_source(path, class_names=(), labeled=False)
    class_folders = (item.key.rpartition("/")[0].partition("/")[0] for item in files.items)
    return "folder", files, class_folders


_N_READ = 64  # number of images that are decoded; `kdedge check` decodes all


def survey_sample(place: Path, *, class_names: Sequence[str] = (), labeled: bool) -> Survey:
    """Lists a folder and decodes some of its images.

    Args:
        place: folder of images, or of class folders if `labeled`.
        class_names: in class-list order.
        labeled: labels are needed.

    Raises:
        DataError: no such folder, fewer than two images (or labeled classes), none that can be
            read, or a class folder whose name is not a class name.
    """
    source = folder.open_source(place, class_names=class_names, labeled=labeled)
    n_images = len(source.items)
    found = read_facts(source, rows=slice(None, None, -(-n_images // _N_READ)))
    labels = Counter(item.label for item in source.items)
    n_unlabeled = labels.pop(None, 0)
    counts = [(name, labels[i]) for i, name in enumerate(class_names)] if labeled else []
    if min(n_images, len(labels) if labeled else n_images) < 2:
        what = f"images of {len(labels)} class" if labeled else f"{n_images} image"
        raise DataError(f"{place} has {what}, and two or more are needed.\n  Add others.")
    twins = _twins([item.key for item in source.items])
    return _survey("folder", str(place), source, found, counts, n_unlabeled, twins)


def _twins(keys: Sequence[str]) -> Iterator[str]:
    """Yields one key of each two that differ in the extension only: the one in the rarer format."""
    format_counts = Counter(PurePosixPath(key).suffix.lower() for key in keys)
    first: set[PurePosixPath] = set()
    for key in sorted(keys, key=lambda key: -format_counts[PurePosixPath(key).suffix.lower()]):
        name = PurePosixPath(key).with_suffix("")
        if name in first:
            yield key
        first.add(name)
