"""Images of a source: which are readable, which are used, and their hashes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from kdedge.data.scan_cache import ImageFacts, ScanCache
from kdedge.data.sources import ImageSource, Joined
from kdedge.errors import DataError
from kdedge.files import sha256_json, write_atomic
from kdedge.messages import some_of
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.preprocess import ImageError, UnreadableImage

_ROWS_AT_ONCE = 16  # starting a task costs 30 us, as much as six cached images
_MAX_TASKS = 10_000


def scan(
    source: ImageSource,
    *,
    rows: slice = slice(None),
    progress: Callable[[int], None] | None = None,
    cache: ScanCache | None = None,
) -> Images:
    """Reads and decodes every image of a source once; the readable ones are in use.

    Args:
        source: the images.
        rows: positions to scan; all by default.
        progress: called with the number of finished images, every few images.
        cache: scanned images, which are not read again; new images are added.
    """
    return scanned(source, read_facts(source, rows=rows, progress=progress, cache=cache))


def read_facts(
    source: ImageSource,
    *,
    rows: slice = slice(None),
    progress: Callable[[int], None] | None = None,
    cache: ScanCache | None = None,
) -> dict[int, ImageFacts | str]:
    """Reads and decodes images of a source, as `scan` does.

    Returns:
        Position -> facts of the image, or the reason why it cannot be read; ascending. It does not
        depend on threads and cache. There is a thread per core, at most 8, as decoding releases the
        interpreter lock. Each thread holds one decoded image.
    """
    cache = cache or ScanCache()
    cache.open(source)
    positions = range(len(source.items))[rows]
    n_at_once = max(_ROWS_AT_ONCE, len(positions) // _MAX_TASKS)
    parts = [positions[start : start + n_at_once] for start in range(0, len(positions), n_at_once)]
    results: list[ImageFacts | str] = []
    try:
        with ThreadPoolExecutor(min(8, usable_cores()), "scan") as pool:
            try:
                for part_results in pool.map(partial(_read_rows, source, cache), parts):
                    results += part_results
                    if progress is not None:
                        progress(len(results))
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        cache.save(source)
    return dict(zip(positions, results, strict=True))


def _read_rows(source: ImageSource, cache: ScanCache, rows: range) -> list[ImageFacts | str]:
    """Returns the facts of each image, or the reason why it cannot be read."""
    results: list[ImageFacts | str] = []
    for i in rows:
        try:
            results.append(cache.facts(source, i))
        except ImageError as error:
            results.append(error.reason)
    return results


def scanned(source: ImageSource, found: Mapping[int, ImageFacts | str]) -> Images:
    """A source's readable images, of what `read_facts` found."""
    readable = {i: facts for i, facts in found.items() if isinstance(facts, ImageFacts)}
    return Images(
        source,
        indices=tuple(readable),
        skipped=tuple(
            UnreadableImage(source.items[i].key, reason)
            for i, reason in found.items()
            if isinstance(reason, str)
        ),
        digests={i: facts.digest for i, facts in readable.items()},
    )


def check_limit(images: Images, limit: int, what: str, *, share: str | int | None = None) -> None:
    """Refuses a source with too many unreadable images.

    Args:
        images: all readable images of the source.
        limit: largest number of unreadable images.
        what: the source's name in the message, such as `data.unlabeled (/data/cams)`.
        share: the value of `data.max_bad_images`, such as 1%.

    Raises:
        DataError: more than `limit` are unreadable, or none is readable.
    """
    n_images = len(images.indices) + len(images.skipped)
    if images.indices and len(images.skipped) <= limit:
        return
    examples = "\n  ".join(some_of(f"{x.key}: {x.reason}." for x in images.skipped))
    if not images.indices:
        raise DataError(
            f"{what}: none of {n_images} images can be read.\n  {examples}\n"
            "  Check that these are image files."
        )
    rounded = f": {share} of {n_images}, rounded up" if isinstance(share, str) else ""
    raise DataError(
        f"{what}: {len(images.skipped)} of {n_images} images are unreadable, and the limit"
        f" is {limit}{rounded}.\n  {examples}\n"
        "  Repair or remove them, or raise data.max_bad_images."
    )


def with_reasons(images: Iterable[UnreadableImage]) -> list[str]:
    """The first 20 images, each with the reason, and the number of others."""
    return some_of((f"{image.key}: {image.reason}" for image in images), 20)


def write_skipped_csv(path: Path, skipped: Mapping[str, Iterable[UnreadableImage]]) -> None:
    """Writes the list of skipped images: a heading, then one `source,key,reason` row per image.

    Args:
        path: the file.
        skipped: name of a source, such as `unlabeled` -> its unreadable images.

    Raises:
        ResourceError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("source", "key", "reason"))
    writer.writerows(
        (source, image.key, image.reason) for source, images in skipped.items() for image in images
    )
    write_atomic(path, text.getvalue().encode())


@dataclass(frozen=True)
class Images:
    """A source and the selection of its readable images that is used.

    Attributes:
        source: the image source.
        indices: positions in the source of the images in use.
        skipped: unreadable images with the reasons.
        digests: position -> hash of the image's bytes, for each readable image.
        train_labels: position -> index of its class among the trained ones; None to train without
            labels.
    """

    source: ImageSource
    indices: tuple[int, ...]
    skipped: tuple[UnreadableImage, ...] = ()
    digests: Mapping[int, str] = field(default_factory=dict)
    train_labels: Mapping[int, int] | None = None

    @cached_property
    def list_hash(self) -> str:
        """SHA-256, in hex, of the images in use: keys, labels and contents in order."""
        items = self.source.items
        digests = self.digests
        return sha256_json([[items[i].key, items[i].label, digests[i]] for i in self.indices])

    @cached_property
    def positions(self) -> dict[str, int]:
        """Key -> position in the source, of the images in use."""
        return {self.source.items[index].key: index for index in self.indices}

    def hash_with(self, class_names: Sequence[str]) -> str:
        """Hash of the images in use and a class list; equal hashes make accuracies comparable."""
        return sha256_json([self.list_hash, list(class_names)])

    def only(self, indices: Sequence[int]) -> Images:
        """Returns the same source with only these images."""
        labels = None if self.train_labels is None else {i: self.train_labels[i] for i in indices}
        return replace(self, indices=tuple(indices), train_labels=labels)

    def spread(self, n_images: int) -> Images:
        """Returns at most this many of the images, evenly spaced, by the function `spread`."""
        return self.only([self.indices[i] for i in spread(len(self.indices), n_images)])

    def labeled_as(self, labels: Mapping[int, int]) -> Images:
        """Returns the images at these positions, with these labels, in the source's order."""
        return replace(self, indices=tuple(sorted(labels)), train_labels=labels)

    def has_labels_of(self, n_classes: int) -> bool:
        """Whether each of the classes has a label."""
        return self.train_labels is not None and len(set(self.train_labels.values())) == n_classes

    def class_labels(self) -> dict[int, int]:
        """Position in the source -> class index, of the images that have a label."""
        labels = {index: self.source.items[index].label for index in self.indices}
        return {index: label for index, label in labels.items() if label is not None}

    def without(self, other: Images) -> Images:
        """Returns the images that are not in another set, compared by their bytes."""
        shared = set(self.shared_with(other))
        return self.only([i for i in self.indices if i not in shared])

    def shared_with(self, other: Images) -> tuple[int, ...]:
        """Positions of the images in use that are also in another set, compared by their bytes."""
        contents = {other.digests[index] for index in other.indices}
        return tuple(i for i in self.indices if self.digests[i] in contents)

    def joined_with(self, other: Images) -> Images:
        """Returns the images of both sources, with labels; the other source comes second."""
        n_own = len(self.source.items)
        digests = {n_own + i: digest for i, digest in other.digests.items()}
        labels = {n_own + i: label for i, label in (other.train_labels or {}).items()}
        return Images(
            Joined(self.source, other.source),
            indices=(*self.indices, *(n_own + i for i in other.indices)),
            skipped=(*self.skipped, *other.skipped),
            digests={**self.digests, **digests},
            train_labels={**(self.train_labels or {}), **labels},
        )

    def of_classes(self, classes: Sequence[int]) -> Images:
        """Returns the images whose label is one of these classes."""
        chosen = set(classes)
        return self.only([i for i in self.indices if self.source.items[i].label in chosen])


def spread(n_items: int, n_wanted: int) -> list[int]:
    """At most `n_wanted` positions among `n_items`, evenly spaced, ascending.

    Test sets are usually sorted by class, so evenly spaced images cover all classes.
    """
    n_taken = min(n_items, n_wanted)
    return [i * n_items // n_taken for i in range(n_taken)]
