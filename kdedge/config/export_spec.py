"""The recipe's keys `export` and `gates`: what goes to the device, and what it must reach."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdedge.config._fields import Percent, Strict, percent_value

MAX_BATCH = 1024


class ExportSpec(Strict):
    """What is exported beside model.onnx, the float32 graph, which is always made."""

    precisions: tuple[Literal["fp16", "int8"], ...] = Field(
        (),
        strict=False,
        description="Files beside the float32 one. fp16: half-precision weights and arithmetic."
        " int8: explicit quantization, which needs calibration images; measure it beside fp16, as"
        " on a ViT it often is no faster.",
    )
    head: Literal["scores", "argmax"] = Field(
        "scores",
        description="scores: the softmax of the output is the student's. argmax: the unit-length"
        " step is dropped, which keeps the ranking of the classes and nothing else.",
    )
    pixels: Literal["float", "uint8"] = Field(
        "float",
        description="What the graph takes. float: pixels as 0-1 in float32, as DeepStream feeds"
        " them. uint8: 0-255, a quarter of the bytes to copy. Mean and std are inside either way.",
    )
    batch: Literal["dynamic"] | Annotated[int, Field(ge=1, le=MAX_BATCH)] = Field(
        "dynamic",
        description="Images a call: dynamic, which is 1 to max_batch, or one fixed number.",
    )
    max_batch: int = Field(
        32,
        ge=1,
        le=MAX_BATCH,
        description="Largest batch an engine is built for. The default is ours.",
    )
    calibration_images: int = Field(
        512,
        ge=1,
        le=100_000,
        description="Images that the int8 ranges are chosen from, drawn from data.unlabeled with"
        " the seed. NVIDIA ModelOpt's guide asks for at least 500 for CNNs and ViTs.",
    )
    parity_images: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Most images that each file is compared on with the float32 student. The"
        " default is ours: with it, one point of agreement is 5 images, and a ViT-B/16 takes a few"
        " minutes on a CPU.",
    )
    external_data: bool = Field(
        False,
        description="Weights in a file of their own beside the ONNX file, which past 2 GB they"
        " must be.",
    )

    @model_validator(mode="after")
    def _check(self) -> ExportSpec:
        twice = sorted({name for name in self.precisions if self.precisions.count(name) > 1})
        if twice:
            raise ValueError(f"has precisions with {twice[0]} more than once; name each once")
        if self.batch != "dynamic" and self.batch > self.max_batch:
            raise ValueError(
                f"has batch: {self.batch}, which is more than max_batch: {self.max_batch};"
                f" set max_batch: {self.batch}"
            )
        return self


class AgreementSpec(Strict):
    """Least share of images on which a file gives the float32 student's top-1 class."""

    fp32: Percent = Field(
        "99.9%",
        description="Of float32 files, which differ by rounding and kernels only. The default is"
        " ours.",
    )
    fp16: Percent = Field("99.5%", description="Of fp16 files. The default is ours.")
    int8: Percent = Field(
        "98%",
        description="Of int8 files, whose ranges were chosen from images. The default is ours.",
    )


class GatesSpec(Strict):
    """What an exported file must reach, measured on real images before it is deployed."""

    agreement: AgreementSpec = Field(
        default_factory=AgreementSpec,
        description="Least share of images on which a file gives the float32 student's top-1"
        " class, by precision.",
    )
    max_drop: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Most points of top-1 accuracy that a file may lose against the float32"
        " student; looked at where there are labeled test images. The default is ours.",
    )

    def as_record(self) -> dict[str, Any]:
        """Gives the numbers: agreement in percent by precision, max_drop in points."""
        agreement = {name: percent_value(text) for name, text in self.agreement}
        return {"agreement": agreement, "max_drop": self.max_drop}
