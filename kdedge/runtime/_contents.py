"""The content of `artifact.json`."""

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
from kdedge.runtime.class_file import OpenClasses, check_class_names
from kdedge.runtime.image_input import InGraph, Pixels, Preparation
from kdedge.runtime.model_file import ModelFile
from kdedge.runtime.none_of_these import NoneOfThese
from kdedge.runtime.temperature import Temperature

FORMAT_VERSION = 6

Head = Literal["scores", "argmax"]


@dataclass(frozen=True)
class _Input(Record):
    name: Literal["images"]
    pixels: Pixels
    batch: Literal["dynamic"] | PositiveCount
    max_batch: PositiveCount
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
class Contents(Record):
    """What `artifact.json` holds; mean and standard deviation are in the graph."""

    format: Annotated[int, Bounds(ge=FORMAT_VERSION, le=FORMAT_VERSION)]
    kdedge: str
    name: str
    class_names: Annotated[tuple[str, ...], Check(check_class_names)]
    output: _Output
    gates: Annotated[dict[str, Any], Holds(_Gates)]
    files: tuple[ModelFile, ...]
    others: dict[str, Sha256]
    provenance: dict[str, Any]
    preprocess: Preparation
    input: _Input
    in_graph: InGraph
    open_classes: Annotated[OpenClasses | None, OPTIONAL] = None
    temperature: Annotated[Temperature | None, OPTIONAL] = None
    none_of_these: Annotated[NoneOfThese | None, OPTIONAL] = None
