"""What a source gives: frames, and that it is lost or back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from kdedge.inference.classify import ImageInput

_SIDE = 16
_CHANGED = 6.0

Thumbnail = npt.NDArray[np.float32]
"""[16, 16], mean brightness of parts of a picture, 0 to 255."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        number: counted from 1 over all frames of the source, the dropped ones too.
        time: when it was read, seconds since 1970.
        image: RGB, or why there is none.
        seconds: position in a video; None for other sources.
        file: file name in a folder; None for other sources.
    """

    number: int
    time: float
    image: ImageInput
    seconds: float | None = None
    file: str | None = None


@dataclass(frozen=True)
class Lost:
    """The source went away; it is tried again until it is back.

    Attributes:
        reason: why, as a sentence without a full stop.
    """

    reason: str


@dataclass(frozen=True)
class Back:
    """The source is there again.

    Attributes:
        after_s: seconds since it was lost.
    """

    after_s: float


def thumbnail(image: Image.Image) -> Thumbnail:
    """Returns the brightness of a picture's parts, to compare it with others."""
    small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0)
    return np.asarray(small.convert("L"), np.float32)


def is_changed(first: Thumbnail | None, second: Thumbnail) -> bool:
    """Whether two pictures show different scenes, beyond noise and small movement."""
    return first is None or float(np.abs(first - second).mean()) > _CHANGED
