"""Drawn images without download: textured shapes, as seen by a dim camera in yellow light.

The demo uses it. The novel classes recombine the colors, textures and shapes of the base classes,
so a prompt that adapts to the camera on the base classes helps on the novel classes.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kdedge.data.drawings import DIM, draw_image
from kdedge.data.sources import ImageSource, Item

CLASS_NAMES = (
    # base
    "dotted blue circle",
    "plain purple square",
    "striped orange triangle",
    "dotted blue star",
    "striped orange cross",
    "checkered yellow heart",
    "plain red circle",
    "plain red square",
    "checkered yellow triangle",
    "dotted green star",
    "striped purple cross",
    "checkered green heart",
    # novel
    "dotted purple circle",
    "plain orange square",
    "striped yellow triangle",
    "checkered red star",
    "striped yellow cross",
    "checkered orange heart",
    "dotted green circle",
    "plain blue square",
    "striped green triangle",
    "dotted purple star",
    "plain blue cross",
    "checkered red heart",
)
"""In label order: the base half, then the novel half."""

_PART_SIZES = {"train": 120, "val": 20, "test": 40}  # images per class
_PART_SEEDS = {"train": 1, "val": 2, "test": 4}
_JPEG_QUALITY = 92


def open_source(*, part: str, labeled: bool) -> ImageSource:
    """Opens a part of the set "shapes".

    Args:
        part: "train" (120 images per class), "val" (20) or "test" (40).
        labeled: whether the items have labels.
    """
    n_classes = len(CLASS_NAMES)
    items = tuple(
        Item(key=f"shapes/{part}/{index:05d}", label=index % n_classes if labeled else None)
        for index in range(n_classes * _PART_SIZES[part])
    )
    return SyntheticSource(part=part, items=items)


@dataclass(frozen=True)
class SyntheticSource:
    """A part of the set "shapes"; images are drawn when they are read.

    Attributes:
        part: "train", "val" or "test".
        items: one item per image; classes alternate.
    """

    part: str
    items: tuple[Item, ...]

    def read(self, i: int) -> bytes:
        """Draws image `i`, the same at every call; returns a JPEG file."""
        texture, color, shape = CLASS_NAMES[i % len(CLASS_NAMES)].split()
        rng = np.random.default_rng([_PART_SEEDS[self.part], i])
        image = draw_image(rng, color=color, texture=texture, shape=shape, camera=DIM)
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        return buffer.getvalue()
