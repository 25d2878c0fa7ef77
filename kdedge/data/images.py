"""Finds unreadable images before training does, and records them."""

from __future__ import annotations

import csv
import io
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kdedge._files import sha256_json, write_atomic
from kdedge.data.sources._protocol import Source
from kdedge.errors import DataError
from kdedge.runtime.preprocess import UnusableImage, decode_image

_MAX_NAMED = 5


@dataclass(frozen=True)
class BadImage:
    """An image that is left out.

    Attributes:
        key: its name in the source.
        reason: why.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        good: positions in the source, ascending.
        bad: the others, in the source's order.
    """

    good: tuple[int, ...]
    bad: tuple[BadImage, ...]


def scan(
    source: Source,
    *,
    n_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """Reads and decodes every image of a source once.

    Args:
        source: where the images are.
        n_threads: decoding releases the interpreter lock, so that threads help. None: one a core,
            at most 8.
        progress: called with (images done, images in all) after each.

    Returns:
        The same, whatever the number of threads. One decoded image a thread is in memory.
    """
    n_threads = n_threads or min(8, os.cpu_count() or 1)
    n_images = len(source.items)
    good: list[int] = []
    bad: list[BadImage] = []
    waiting: deque[Future[str | None]] = deque()

    def finish_one() -> None:
        _record(waiting.popleft().result(), source, good, bad)
        if progress is not None:
            progress(len(good) + len(bad), n_images)

    with ThreadPoolExecutor(n_threads, thread_name_prefix="scan") as pool:
        try:
            for i in range(n_images):
                if len(waiting) == 4 * n_threads:
                    finish_one()
                waiting.append(pool.submit(_fault, source, i))
            while waiting:
                finish_one()
        finally:
            pool.shutdown(cancel_futures=True)
    return Scan(tuple(good), tuple(bad))


def _fault(source: Source, i: int) -> str | None:
    try:
        decode_image(source.read(i))
    except UnusableImage as error:
        return error.reason
    return None


def _record(reason: str | None, source: Source, good: list[int], bad: list[BadImage]) -> None:
    position = len(good) + len(bad)
    if reason is None:
        good.append(position)
    else:
        bad.append(BadImage(source.items[position].key, reason))


def check_limit(scan: Scan, limit: int, what: str) -> None:
    """Refuses a source with too many unreadable images.

    Args:
        scan: what was found.
        limit: how many unreadable images are accepted.
        what: names the source in the message, as in `data.unlabeled (/data/cams)`.

    Raises:
        DataError: more than `limit` are unreadable, or none is readable.
    """
    n_images = len(scan.good) + len(scan.bad)
    if scan.good and len(scan.bad) <= limit:
        return
    if not n_images:
        raise DataError(f"{what} has no images.")
    named = "\n".join(f"  {bad.key}: {bad.reason}." for bad in scan.bad[:_MAX_NAMED])
    more = len(scan.bad) - _MAX_NAMED
    remedy = (
        "  Repair or remove them, or raise data.max_bad_images."
        if scan.good
        else "  None is left to work with; check that these are image files."
    )
    raise DataError(
        f"{what}: {len(scan.bad)} of {n_images} images are unreadable, at most {limit} are"
        f" accepted.\n{named}\n" + (f"  And {more} more.\n" if more > 0 else "") + remedy
    )


def write_skipped_csv(path: Path, bad: Iterable[BadImage]) -> None:
    """Writes the skip list: a heading, then one `key,reason` row an image.

    Raises:
        ResourceError: the file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "reason"))
    writer.writerows((image.key, image.reason) for image in bad)
    write_atomic(path, text.getvalue().encode())


def image_list_hash(source: Source, indices: Iterable[int]) -> str:
    """Gives the SHA-256 of a list of images: of their keys and labels in order, in hex."""
    items = source.items
    return sha256_json([[items[i].key, items[i].label] for i in indices])
