"""Surveys the user's images: readability, sizes and classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdedge.config.fields import HUB
from kdedge.data.images import BadImage, check_limit, scan
from kdedge.data.sources import Source, folder, huggingface, parquet, webdataset
from kdedge.data.sources import list as list_source
from kdedge.progress import progress


@dataclass(frozen=True)
class Survey:
    """The result of a survey.

    Attributes:
        kind: folder, list, webdataset, parquet or huggingface: the recipe's key.
        n_images: images in all.
        bad: images that cannot be read.
        n_duplicates: readable images with the same bytes as an earlier one.
        sizes_px: ((width, height), number of readable images), the most frequent first.
        classes: (class name in the source, number of images), sorted by name; empty without
            labels.
        n_unlabeled: images without a class.
        left_out: (kind, number of files) of a folder that are not read as images.
    """

    kind: str
    n_images: int
    bad: tuple[BadImage, ...]
    n_duplicates: int
    sizes_px: tuple[tuple[tuple[int, int], int], ...]
    classes: tuple[tuple[str, int], ...]
    n_unlabeled: int
    left_out: tuple[tuple[str, int], ...] = ()


def survey(place: str) -> Survey:
    """Reads and decodes every image of a source once.

    Args:
        place: a folder, of images, of Parquet files or of a Hugging Face dataset; a `.csv` file; a
            `.tar` or `.parquet` file, or a pattern of many.

    Raises:
        DataError: it is missing, empty or malformed, or none of its images can be read.
        MissingPackage: webdataset or datasets, which reads it, is not installed.
    """
    kind, source, labels = _open(place)
    with progress(f"reading {place}", len(source.items), unit="images") as advance:
        found = scan(source, progress=advance)
    check_limit(found, len(found.bad), place)
    counts = Counter(labels)
    n_unlabeled = counts.pop("", 0)
    return Survey(
        kind=kind,
        n_images=len(source.items),
        bad=found.bad,
        n_duplicates=len(found.digests) - len(set(found.digests)),
        sizes_px=tuple(sorted(found.sizes_px.items(), key=lambda pair: (-pair[1], pair[0]))),
        classes=tuple(sorted(counts.items())),
        n_unlabeled=n_unlabeled,
        left_out=tuple(sorted(getattr(source, "left_out", {}).items())),
    )


def _open(place: str) -> tuple[str, Source, Iterable[str]]:
    """A source's kind, its images, and the text of each label, "" for none."""
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
        listed = list_source.open_source(path, class_names=(), labeled=False)
        return "list", listed, list_source.label_texts(path)
    files = folder.open_source(path, class_names=(), labeled=False)
    tops = (item.key.rpartition("/")[0].partition("/")[0] for item in files.items)
    return "folder", files, tops
