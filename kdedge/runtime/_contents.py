"""The content of `artifact.json`, in every format that kdedge reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from kdedge.records import (
    OPTIONAL,
    Bounds,
    Check,
    Holds,
    Percent,
    PositiveCount,
    Record,
    Sha256,
    Shape,
)
from kdedge.runtime._seal import Resealed
from kdedge.runtime.class_file import OpenClasses, check_class_names
from kdedge.runtime.image_input import InGraph, Pixels, Preparation
from kdedge.runtime.model_file import ModelFile
from kdedge.runtime.none_of_these import NoneOfThese
from kdedge.runtime.preprocess import Preprocess
from kdedge.runtime.temperature import Temperature

FORMAT_VERSION = 5
"""An artifact is of the oldest format that can hold it, so that older versions can run it."""

Head = Literal["scores", "argmax"]


def format_of(
    open_classes: OpenClasses | None,
    temperature: Temperature | None,
    none_of_these: NoneOfThese | None,
) -> int:
    """The oldest format for an artifact with these.

    Returns:
        3 for open classes, 4 for a temperature or "none of these", 5 for limits of single classes.
    """
    if temperature is None and none_of_these is None:
        return 2 if open_classes is None else 3
    has_own_limits = none_of_these is not None and none_of_these.labeled_images is not None
    return FORMAT_VERSION if has_own_limits else 4


@dataclass(frozen=True)
class _Input(Record):
    name: Literal["images"]
    pixels: Pixels
    batch: Literal["dynamic"] | PositiveCount
    max_batch: PositiveCount


@dataclass(frozen=True)
class _DescribedInput(_Input):
    dtype: Literal["float32", "uint8"]
    layout: Literal["NCHW"]
    channels: Literal["RGB"]
    values: tuple[int, int]


@dataclass(frozen=True)
class _Output(Record):
    name: Literal["logits", "features"]
    head: Head


@dataclass(frozen=True)
class _Gates(Shape):
    """Agreement in percent by precision, and drop in points; an artifact may have no gates."""

    agreement: Annotated[dict[str, Percent], OPTIONAL]
    max_drop: Annotated[Percent, OPTIONAL]


@dataclass(frozen=True)
class _Contents(Record):
    """What `artifact.json` holds in every format."""

    format: Annotated[int, Bounds(ge=1, le=FORMAT_VERSION)]
    kdedge: str
    name: str
    class_names: Annotated[tuple[str, ...], Check(check_class_names)]
    output: _Output
    gates: Annotated[dict[str, Any], Holds(_Gates)]
    files: tuple[ModelFile, ...]
    others: dict[str, Sha256]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Contents1(_Contents):
    """Format 1, of version 0.1: no seal; mean and standard deviation are among the steps."""

    preprocess: Preprocess
    input: _Input


@dataclass(frozen=True)
class Contents2(_Contents):
    """Formats 2 to 5: with a seal; mean and standard deviation are in the graph."""

    preprocess: Preparation
    input: _DescribedInput
    in_graph: InGraph
    resealed: tuple[Resealed, ...]
    seal: Sha256
    open_classes: Annotated[OpenClasses | None, OPTIONAL] = None
    temperature: Annotated[Temperature | None, OPTIONAL] = None
    none_of_these: Annotated[NoneOfThese | None, OPTIONAL] = None
