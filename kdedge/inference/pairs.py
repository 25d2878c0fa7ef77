"""Classifies the same images with two artifacts, reading and preparing each image once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

from kdedge.inference.classify import Classifier, ImageInput
from kdedge.inference.results import Result
from kdedge.runtime.backend import TakesImages
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.preprocess import Preprocess, UnusableImage, decode_image, resize_and_crop

_MAX_AT_ONCE = 256

Read = Callable[[], ImageInput]
"""Gives an image; it is called once, in a thread."""


def classify_with_both(
    old: Classifier, new: Classifier, reads: Iterable[Read], *, batch: int | None = None
) -> Iterator[tuple[Result, Result]]:
    """Classifies images with two classifiers, in their order: the results of each alone.

    Args:
        old: the first.
        new: the second.
        reads: give the images; the next ones are read while these are classified.
        batch: batch size; None: for each the largest that its artifact was made for.

    Raises:
        RecipeError: an artifact does not take batches of that size.
    """
    preparation = _shared_preparation(old, new)
    size = _n_at_once(old, new, batch)
    reads = iter(reads)
    pool = ThreadPoolExecutor(min(8, usable_cores()), thread_name_prefix="prepare")

    def submit_next() -> list[Future[ImageInput]]:
        return [pool.submit(_prepared, read, preparation) for read in islice(reads, size)]

    try:
        ahead = submit_next()
        while ahead:
            images = [future.result() for future in ahead]
            ahead = submit_next()
            keyed = [("", image) for image in images]
            results = [list(one.classify_many(keyed, batch=batch)) for one in (old, new)]
            yield from zip(*results, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _n_at_once(old: Classifier, new: Classifier, batch: int | None) -> int:
    """Images that both classify in whole batches, as they would alone; at most some hundred."""
    sizes = [one.max_batch if batch is None else batch for one in (old, new)]
    both = math.lcm(*sizes)
    return both if both <= _MAX_AT_ONCE else max(sizes)


def _shared_preparation(old: Classifier, new: Classifier) -> Preprocess | None:
    """The resize and crop of both; None if they differ or a file does it itself."""
    if any(isinstance(one.backend, TakesImages) for one in (old, new)):
        return None
    first, second = (
        (p.size_px, p.interpolation, p.resize_mode)
        for p in (old.artifact.preprocess, new.artifact.preprocess)
    )
    return old.artifact.preprocess if first == second else None


def _prepared(read: Read, preparation: Preprocess | None) -> ImageInput:
    """An image after resize and crop, which a classifier then leaves as it is."""
    image = read()
    if preparation is None or isinstance(image, UnusableImage):
        return image
    try:
        decoded = decode_image(image) if isinstance(image, bytes) else image
    except UnusableImage as error:
        return error
    return resize_and_crop(decoded, preparation)
