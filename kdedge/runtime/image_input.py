"""Describes a graph's input, so that a program without kdedge preprocesses images the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from kdedge.records import Record
from kdedge.runtime.preprocess import Preprocess

Pixels = Literal["float", "uint8"]


@dataclass(frozen=True)
class Preparation(Record):
    """How an image file becomes pixels, as in `artifact.json`.

    Attributes:
        size_px: side of the model's square input, pixels.
        resize_mode: as in `Preprocess`.
        interpolation: as in `Preprocess`.
        crop: the part that is kept after resizing.
        rounding: how values and sides are rounded.
        normalization: where mean and standard deviation are applied.
        steps: all steps in order, in words.
    """

    size_px: int
    resize_mode: Literal["shortest", "squash"]
    interpolation: Literal["bicubic", "bilinear"]
    crop: Literal["center", "none"]
    rounding: str
    normalization: Literal["in graph"]
    steps: list[str]


@dataclass(frozen=True)
class InGraph(Record):
    """Normalization in the graph, which must not be applied a second time.

    Attributes:
        mean: subtracted, per channel in RGB order, for values 0-1.
        std: divided by, per channel in RGB order, for values 0-1.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def describe_preparation(preprocess: Preprocess, pixels: Pixels) -> Preparation:
    """Describes how an image file becomes the graph's input."""
    is_cropped = preprocess.resize_mode == "shortest"
    return Preparation(
        size_px=preprocess.size_px,
        resize_mode=preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        crop="center" if is_cropped else "none",
        rounding="values to 8 bits after resizing; sides down; crop offsets to the nearest, halves"
        " to the even number",
        normalization="in graph",
        steps=_steps(preprocess, pixels),
    )


def describe_tensor(pixels: Pixels) -> dict[str, Any]:
    """Type, layout, channel order and range of values of the graph's input."""
    return {
        "dtype": "float32" if pixels == "float" else "uint8",
        "layout": "NCHW",
        "channels": "RGB",
        "values": [0, 1] if pixels == "float" else [0, 255],
    }


def _steps(preprocess: Preprocess, pixels: Pixels) -> list[str]:
    size = preprocess.size_px
    how = f"{preprocess.interpolation} with antialiasing, as Pillow's Image.resize; values stay"
    resized, crop = f"Resize to {size} x {size} pixels, whatever the aspect ratio", []
    if preprocess.resize_mode == "shortest":
        resized = (
            f"Resize the shorter side to {size} pixels and the longer one to floor({size} * longer"
            " / shorter)"
        )
        crop = [
            f"Crop {size} x {size} pixels from the center; left and top are round((side - {size})"
            " / 2), halves to the even number."
        ]
    scaled = "Divide by 255, in float32." if pixels == "float" else "Keep the bytes 0 to 255."
    return [
        "Decode to 8-bit RGB, upright by EXIF's orientation, transparent parts over white.",
        f"{resized}, {how} 8-bit.",
        *crop,
        scaled,
        f"Order the axes as [batch, 3, {size}, {size}]. Apply no mean and no standard deviation:"
        " the graph does.",
    ]
