"""The schema of a recipe's `export` and `gates`: exported files, and the limits that they meet."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from kdedge.config.fields import Distinct, PercentText, Strict, percent_value
from kdedge.records.evaluation import Gates
from kdedge.runtime.artifact import Head, PixelType

MAX_BATCH = 1024


def _check_share(text: str) -> str:
    if not 50 <= percent_value(text) <= 99.9:
        raise ValueError(f'must be from "50%" to "99.9%", got "{text}"')
    return text


KnownShare = Annotated[PercentText, AfterValidator(_check_share)]


class ExportSpec(Strict):
    """The exported files. model.onnx, the float32 graph, is always made."""

    precisions: Annotated[tuple[Literal["fp16", "int8"], ...], Distinct] = Field(
        (),
        strict=False,
        description="Precisions to export besides float32. fp16: half-precision weights and"
        " arithmetic. int8: explicit quantization (Q/DQ), which needs calibration images."
        " On a ViT int8 is often no faster than fp16, so measure both.",
    )
    head: Head = Field(
        "scores",
        description="scores: the graph gives the student's logits. argmax: it skips L2"
        " normalization; the class ranking is unchanged, but there are no scores.",
    )
    open_classes: bool = Field(
        False,
        description="The graph gives image features, and the class vectors are a file next to it,"
        " so that `kdedge classes` adds and removes classes of the exported artifact.",
    )
    calibrate: bool = Field(
        False,
        description="Calibrate the scores: divide the logits by a fitted temperature, so that of"
        " predictions with a score of 80 % about 80 % are right. It is fitted to data.validation,"
        " else to data.labeled if the model was not trained on it, else to the teacher's"
        " predictions on data.unlabeled, and folded"
        " into the graph. The predicted classes do not change.",
    )
    none_of_these: KnownShare | None = Field(
        None,
        description='Predict "none" for images unlike those of data.unlabeled. The limit of each'
        " file is set so that this share of data.unlabeled, such as 95%, still gets a class.",
    )
    pixels: PixelType = Field(
        "float",
        description="Input of the graph. float: float32 pixels, 0-1. uint8: 0-255,"
        " a quarter of the bytes to copy. The graph applies mean and std itself.",
    )
    batch: Literal["dynamic"] | Annotated[int, Field(ge=1, le=MAX_BATCH)] = Field(
        "dynamic", description="Images per call: dynamic (1 to max_batch) or one fixed number."
    )
    max_batch: int = Field(
        32, ge=1, le=MAX_BATCH, description="Largest batch that engines are built for."
    )
    calibration_images: int = Field(
        512,
        ge=1,
        le=100_000,
        description="Images on which INT8's ranges are measured, drawn from data.unlabeled with the"
        " seed; not those of `calibrate`. NVIDIA ModelOpt's guide asks for at least 500 for CNNs"
        " and ViTs.",
    )
    int8_minutes: float = Field(
        10.0,
        ge=0,
        le=1440,
        description="Minutes for the search of int8's ranges, smoothing, rounding and layers that"
        " stay in float. It ends earlier when the int8 student agrees well enough on held-out"
        " images, and keeps the best so far. The default is for a ViT-B/16 on two cores.",
    )
    parity_images: int = Field(
        500,
        ge=1,
        le=1_000_000,
        description="Most images on which each file is compared with the float32 model. By"
        " default one point of agreement is 5 images, and a ViT-B/16 takes minutes on a CPU.",
    )
    external_data: bool = Field(
        False,
        description="Store the weights in a separate file next to the ONNX file. Models above 2 GB"
        " need it.",
    )

    @model_validator(mode="after")
    def _check(self) -> ExportSpec:
        if self.batch != "dynamic" and self.batch > self.max_batch:
            raise ValueError(
                f"has batch: {self.batch}, which is more than max_batch: {self.max_batch};"
                f" set max_batch: {self.batch}"
            )
        if self.head == "argmax" and (self.calibrate or self.none_of_these is not None):
            key = "calibrate" if self.calibrate else "none_of_these"
            raise ValueError(
                f"has {key} with head: argmax, which gives no scores; set head: scores or leave"
                f" {key} out"
            )
        return self


class AgreementSpec(Strict):
    """Lowest top-1 agreement with the float32 model, by precision."""

    fp32: PercentText = Field(
        "99.9%", description="For float32 files, which differ by rounding and kernels only."
    )
    fp16: PercentText = Field("99.5%", description="For fp16 files.")
    int8: PercentText = Field("98%", description="For int8 files.")


class GatesSpec(Strict):
    """What an exported file must reach on real images before it is deployed."""

    agreement: AgreementSpec = Field(
        default_factory=AgreementSpec,
        description="Lowest share of images on which a file gives the float32 model's top-1"
        " class, by precision.",
    )
    max_drop: float = Field(
        1.0,
        ge=0,
        le=100,
        description="Largest drop of top-1 accuracy against the float32 model, percentage points."
        " One image is never too many. Checked if there are labeled test images.",
    )

    def to_gates(self) -> Gates:
        """Returns the gates as numbers."""
        return Gates({name: percent_value(text) for name, text in self.agreement}, self.max_drop)
