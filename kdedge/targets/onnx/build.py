"""Builds ONNX files: traces the folded model in float32, and converts that to FP16 and INT8."""

from __future__ import annotations

from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from kdedge.runtime.artifact import Precision
from kdedge.targets.onnx import ONNX, ONNX_IR, ONNXSCRIPT, run
from kdedge.targets.onnx.half import to_fp16
from kdedge.targets.onnx.quantize import to_int8, to_int8_cpu
from kdedge.targets.onnx.trace import write_onnx
from kdedge.targets.protocol import BuildRequest, PlannedFile

_FILES: dict[Precision, tuple[PlannedFile, ...]] = {
    "fp32": (PlannedFile("model.onnx", "fp32", "any"),),
    "fp16": (PlannedFile("model.fp16.onnx", "fp16", "gpu"),),
    "int8": (
        PlannedFile("model.int8.onnx", "int8", "gpu"),
        PlannedFile("model.int8-cpu.onnx", "int8", "cpu"),
    ),
}


def check_environment() -> None:
    """Checks for the packages that write ONNX files, and for ONNX Runtime, which compares them.

    Raises:
        MissingPackage: one of them is not installed.
        SetupError: ONNX Runtime is installed, but cannot be imported.
    """
    for package in (ONNX, ONNX_IR, ONNXSCRIPT):
        if find_spec(package.module) is None:
            raise package.missing("ONNX export")
    run.check_environment()


def plan(precision: Precision) -> tuple[PlannedFile, ...]:
    """The files of a precision; INT8 has one for TensorRT and one for CPUs."""
    return _FILES[precision]


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds one file.

    `options` may have `external_data`, which stores the float32 file's weights in a second file,
    `metadata`, the float32 file's properties, and `tracer`. Files of lower precision keep the first
    two. INT8 for TensorRT has `layers`, what is quantized.

    Raises:
        DataError: there are no images for the ranges, or they do not fit the graph.
        RecipeError: the weights exceed the limit of one file.
        ResourceError: the file cannot be written.
    """
    path = request.folder / file.name
    tool = "torch" if file.precision == "fp32" else "kdedge"
    if file.precision == "fp32":
        artifact = request.artifact
        write_onnx(
            request.model,
            path,
            size_px=artifact.preprocess.size_px,
            batch=artifact.batch,
            max_batch=artifact.max_batch,
            **request.options,
        )
    else:
        assert request.onnx_path is not None
        assert request.images is not None
        if file.precision == "fp16":
            to_fp16(request.onnx_path, path, images=request.images)
        elif file.device == "cpu":
            to_int8_cpu(request.onnx_path, path, calibration=request.images)
        else:
            to_int8(
                request.onnx_path,
                path,
                calibration=request.images,
                layers=request.options["layers"],
            )
    return {"tool": tool, "version": version(tool)}
