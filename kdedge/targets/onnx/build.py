"""The ONNX files that `deploy.export` writes, and what is needed to write them."""

from __future__ import annotations

from importlib.util import find_spec

from kdedge.targets.onnx import ONNX, ONNX_IR, ONNXSCRIPT, run
from kdedge.targets.protocol import PlannedFile

FLOAT32 = PlannedFile("model.onnx", "fp32", "any")
FP16 = PlannedFile("model.fp16.onnx", "fp16", "gpu")
INT8 = PlannedFile("model.int8.onnx", "int8", "gpu")
INT8_CPU = PlannedFile("model.int8-cpu.onnx", "int8", "cpu")


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
