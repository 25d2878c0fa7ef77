"""Reads images of a source: as a graph's pixels, resized and cropped, or as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.data.sources import Source
from kdedge.errors import DataError
from kdedge.runtime.machine import usable_cores
from kdedge.runtime.preprocess import (
    Preprocess,
    UnusableImage,
    decode_image,
    resize_and_crop,
)

PixelArray = npt.NDArray[np.uint8]


def read_pixels(source: Source, indices: Sequence[int], preprocess: Preprocess) -> PixelArray:
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


def read_images(source: Source, indices: Sequence[int]) -> Iterator[PixelArray]:
    """Reads images as they are, one after the other: [H, W, 3], uint8, RGB, upright.

    Raises:
        DataError: an image cannot be read or decoded.
    """
    for index in indices:
        yield np.asarray(_decoded(source, index))


def _decoded(source: Source, index: int) -> Image.Image:
    try:
        return decode_image(source.read(index))
    except UnusableImage as error:
        raise DataError(
            f"{source.items[index].key}: {error.reason}; the image was readable before.\n"
            "  Run the command again when the images no longer change."
        ) from error
