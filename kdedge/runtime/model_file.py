"""One file of an artifact that a backend can run, as `artifact.json` lists it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from kdedge.records import (
    OPTIONAL,
    Bounds,
    Holds,
    NonNegative,
    PositiveCount,
    Record,
    Sha256,
    Shape,
)
from kdedge.results import ParityResult
from kdedge.runtime.none_of_these import NoneBelow

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Device = Literal["any", "cpu", "gpu"]
Gate = Literal["passed", "missed", "not measured"]


@dataclass(frozen=True)
class _BuiltWith(Shape):
    """The facts in `ModelFile.built_with` that kdedge uses."""

    gmacs: Annotated[NonNegative, OPTIONAL]
    parameters: Annotated[PositiveCount, OPTIONAL]
    profiles: Annotated[list[Any], OPTIONAL]


@dataclass(frozen=True)
class ModelFile(Record):
    """One file of the artifact that a backend can run.

    Attributes:
        name: the file's name in the folder.
        target: its target, such as `onnx` or `tensorrt`.
        precision: precision of its weights and arithmetic.
        device: device that it is meant for.
        sha256: SHA-256 of the file's bytes, in hex.
        n_bytes: size of the file.
        data: name of its external data file, which is one of `Artifact.others`; None if the
            weights are in the file itself.
        made_from: SHA-256 of the ONNX file that an engine was built from; None for ONNX files.
        built_with: tool, versions, device, profile, flags and seconds of the build.
        parity: comparison with the model on real images; None if not measured.
        gate: whether the comparison passed the recipe's gates.
        none_below: its limits for "none of these"; None if the artifact cannot tell, or if they are
            those of the file that it was made from.
    """

    name: str
    target: str
    precision: Precision
    device: Device
    sha256: Sha256
    n_bytes: Annotated[int, Bounds(ge=1, le=10**18)]
    data: str | None = None
    made_from: Sha256 | None = None
    built_with: Annotated[dict[str, Any], Holds(_BuiltWith)] = field(default_factory=dict)
    parity: ParityResult | None = None
    gate: Gate = "not measured"
    none_below: Annotated[NoneBelow | None, OPTIONAL] = None
