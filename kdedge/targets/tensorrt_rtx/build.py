"""Builds engines of TensorRT for RTX, for GeForce and RTX GPUs since Ampere, without a GPU.

One file works on Linux and Windows and on all these GPUs, and needs the TensorRT-RTX version that
built it. Its first run on a GPU compiles the kernels. Jetsons and data-center GPUs use TensorRT.
"""

from __future__ import annotations

from typing import Any

from kdedge.runtime.artifact import Precision
from kdedge.targets.base import BuildRequest, PlannedFile
from kdedge.targets.engines.builder import EngineBuilder
from kdedge.targets.engines.package import engine_package, short_version
from kdedge.targets.tensorrt_rtx import TENSORRT_RTX

_DEVICE = {
    "device": "RTX GPUs of compute capability 8.0, 8.6, 8.9, 12.0 and later",
    "compute_capability": None,
}


def plan(precision: Precision) -> PlannedFile:
    """The engine of a precision, named after the version that it needs."""
    version = short_version(engine_package(TENSORRT_RTX))
    return PlannedFile(f"model.{precision}.rtx{version}.engine", precision, "gpu")


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds a portable engine from an ONNX file of the same precision.

    Raises:
        SetupError: TensorRT-RTX is missing or cannot build the graph.
        ResourceError: memory or disk ran out.
    """
    module = engine_package(TENSORRT_RTX)
    builder = EngineBuilder(module, title="TensorRT-RTX", timing_cache=None)
    return builder.build_file(request, _DEVICE)
