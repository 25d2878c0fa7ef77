"""Draws images of a source, and reads their pixels as the device gets them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.data.sources import ImageSource
from kdedge.errors import DataError
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.preprocess import ImageError, Preprocess, decode_image, resize_and_crop

PixelArray = npt.NDArray[np.uint8]


def draw_contents(digests: Mapping[int, str], seed: int) -> list[int]:
    """Positions of images in random order, each content only once."""
    drawn: dict[str, int] = {}
    for index in np.random.default_rng(seed).permutation(sorted(digests)).tolist():
        drawn.setdefault(digests[index], index)
    return list(drawn.values())


def read_different_pixels(
    source: ImageSource, indices: Sequence[int], preprocess: Preprocess, *, use: str
) -> PixelArray:
    """Reads images as `read_pixels` does; `use`, for the message, is what they are needed for.

    Raises:
        DataError: an image cannot be read, or all have the same pixels.
    """
    pixels = read_pixels(source, indices, preprocess)
    if len(pixels) > 1 and not (pixels != pixels[0]).any():
        raise DataError(
            f"{use}: all {len(pixels)} images have the same pixels, for example"
            f" {source.items[indices[0]].key}.\n"
            "  Check data.unlabeled: it needs real images of the deployment."
        )
    return pixels


def read_pixels(source: ImageSource, indices: Sequence[int], preprocess: Preprocess) -> PixelArray:
    """Reads images with the deployment's preprocessing.

    Args:
        source: the source of images.
        indices: positions of the images, in this order.
        preprocess: size, interpolation and resize mode.

    Returns:
        [N, S, S, 3], uint8, RGB.

    Raises:
        DataError: an image cannot be read or decoded.
    """

    def read(index: int) -> PixelArray:
        return np.asarray(resize_and_crop(_decoded(source, index), preprocess))

    size = preprocess.size_px
    pixels = np.empty((len(indices), size, size, 3), dtype=np.uint8)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:  # decoding releases the lock
        for position, image in enumerate(pool.map(read, indices)):
            pixels[position] = image
    return pixels


def read_images(source: ImageSource, indices: Sequence[int]) -> Iterator[PixelArray]:
    """Yields images without resize and crop: [H, W, 3], uint8, RGB, upright.

    Raises:
        DataError: an image cannot be read or decoded.
    """
    for index in indices:
        yield np.asarray(_decoded(source, index))


def _decoded(source: ImageSource, index: int) -> Image.Image:
    try:
        return decode_image(source.read(index))
    except ImageError as error:
        raise DataError(
            f"{source.items[index].key}: {error.reason}; the image was readable before.\n"
            "  Try again when the images no longer change."
        ) from error
