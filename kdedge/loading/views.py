"""Views: the random crop, flip and colors of an image, from seed, image and view number only.

Each view draws from its own counter-based random stream. Any process can compute any view at any
time, and gets the same one to the last bit. So a teacher's features of a view can be stored, and
the student gets the same view later.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import decode_jpeg

from kdedge.runtime.preprocess import Preprocess, decode_image, is_upright_jpeg

RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop: torchvision's default, which the papers' code uses."""

ORDER = 0
"""The stream of an epoch's order; image i's crop and flip come from stream i + 1."""

SECOND_SET = 2**32
"""Added to a (smaller) seed for the order and views of a second image set."""

_N_TRIES = 10

_FULL_SIZE_PX = 224  # image side, in pixels, that the published blur of a strong view is for


def crop_box(
    width: int, height: int, *, scale_min: float, generator: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draws a random crop as torchvision's RandomResizedCrop does.

    Area uniform in (scale_min, 1) of the image, aspect ratio log-uniform in 3/4 to 4/3, ten tries,
    then the largest central crop within these ratios.

    Args:
        width: width of the image, pixels.
        height: height of the image, pixels.
        scale_min: smallest share of the image's area, 0-1.
        generator: draws the numbers.

    Returns:
        left, top, width, height, in pixels.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for _ in range(_N_TRIES):
        area = width * height * generator.uniform(scale_min, 1.0)
        ratio = math.exp(generator.uniform(low, high))
        crop_width = round(math.sqrt(area * ratio))
        crop_height = round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(generator.integers(0, height - crop_height + 1))
            left = int(generator.integers(0, width - crop_width + 1))
            return left, top, crop_width, crop_height
    ratio = width / height
    crop_width = width
    crop_height = height
    if ratio < RATIO[0]:
        crop_height = round(width / RATIO[0])
    elif ratio > RATIO[1]:
        crop_width = round(height * RATIO[1])
    return (width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height


def random_stream(seed: int, number: int, stream: int) -> np.random.Generator:
    """Makes one of 2^64 independent random streams, in microseconds.

    Args:
        seed: seed of the run, or of the views.
        number: number of the epoch or view.
        stream: `ORDER`, or an image's position in its source plus 1.
    """
    key = np.array([seed % 2**64, number], dtype=np.uint64)
    counter = np.array([0, 0, stream, 0], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def decode_pixels(data: bytes) -> Tensor:
    """Decodes an image file to the pixels of `decode_image`; most JPEGs take a third less time.

    Returns:
        [3, H, W] uint8, RGB.

    Raises:
        ImageError: as in `decode_image`.
    """
    if is_upright_jpeg(data):
        with contextlib.suppress(RuntimeError):  # torchvision was built without libjpeg
            pixels: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
            return pixels
    return torch.from_numpy(np.array(decode_image(data))).permute(2, 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """Random crop and flip, and in a strong view colors, gray and blur.

    Attributes:
        seed: seed of the views.
        scale_min: smallest share of the image's area that a crop keeps, 0-1.
        flip: mirror half of the views.
        strong: also change colors and blur, as `strengthened` does.
    """

    seed: int
    scale_min: float
    flip: bool
    strong: bool = False

    def __call__(
        self, image: Tensor, preprocess: Preprocess, *, position: int, view: int
    ) -> Tensor:
        """Draws a view of the image at a position of its source.

        torch resizes 8-bit pixels in a quarter of Pillow's time; 2 % of the values differ, by
        up to 5 of 255.

        Args:
            image: [3, H, W] uint8, RGB.
            preprocess: the model's size and interpolation.
            position: position of the image in the source.
            view: number of the view.

        Returns:
            [3, size_px, size_px] uint8.
        """
        generator = random_stream(self.seed, view, position + 1)
        height, width = image.shape[1:]
        left, top, width, height = crop_box(
            width, height, scale_min=self.scale_min, generator=generator
        )
        side = preprocess.size_px
        image = image[:, top : top + height, left : left + width]
        if (width, height) != (side, side):
            # In this memory order torch takes a quarter less time, for equal values
            crop = image[None].contiguous(memory_format=torch.channels_last)
            image = F.interpolate(
                crop, (side, side), mode=preprocess.interpolation, antialias=True
            )[0]
        if self.flip and generator.random() < 0.5:
            image = image.flip(-1)
        if not self.strong:
            return image
        strong = strengthened(Image.fromarray(image.permute(1, 2, 0).numpy()), generator)
        return torch.from_numpy(np.array(strong)).permute(2, 0, 1)


def strengthened(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Makes LaFTer's strong view: color jitter in 80 %, gray in 20 %, blur in all.

    The settings are MoCo v2's (arXiv:2003.04297): brightness, contrast and saturation by a factor
    of 0.6 to 1.4, hue by up to 0.1 of the circle, in random order; a Gaussian blur of 0.1 to 2
    pixels at a side of 224 pixels, and in proportion at others.

    Args:
        image: RGB, cropped and resized.
        generator: draws the numbers.
    """
    if generator.random() < 0.8:
        factors = generator.uniform(0.6, 1.4, 3).tolist()
        hue = generator.uniform(-0.1, 0.1)
        for index in generator.permutation(4).tolist():
            if index == 3:
                image = shift_hue(image, hue)
            else:
                image = _ENHANCERS[index](image).enhance(factors[index])
    if generator.random() < 0.2:
        image = image.convert("L").convert("RGB")
    radius = generator.uniform(0.1, 2.0) * image.width / _FULL_SIZE_PX
    return image.filter(ImageFilter.GaussianBlur(radius))


_ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Rotates an RGB image's hue by a share of the circle, -0.5 to 0.5, as torchvision does."""
    hue, saturation, value = image.convert("HSV").split()
    rotated = np.asarray(hue) + np.int32(shift * 255).astype(np.uint8)
    return Image.merge("HSV", (Image.fromarray(rotated), saturation, value)).convert("RGB")
