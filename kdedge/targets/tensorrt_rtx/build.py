"""Builds engines of TensorRT for RTX, for GeForce and RTX GPUs since Ampere, without a GPU.

One file works on Linux and Windows and on all these GPUs; the first run on a GPU compiles its
kernels. It loads only in the TensorRT-RTX version that built it. Jetsons and data-center GPUs use
TensorRT.
"""

from __future__ import annotations

import platform
from types import ModuleType
from typing import Any

from kdedge.errors import SetupError
from kdedge.runtime.artifact import Precision
from kdedge.runtime.cuda import find_gpu
from kdedge.targets.engines.builder import EngineBuilder, EngineRequest
from kdedge.targets.engines.package import import_engine_package, short_version
from kdedge.targets.protocol import BuildRequest, PlannedFile
from kdedge.targets.tensorrt_rtx.describe import TENSORRT_RTX


def check_environment() -> None:
    """Checks for TensorRT-RTX; a GPU is not needed.

    Raises:
        MissingPackage: tensorrt-rtx is not installed.
        SetupError: TensorRT-RTX does not exist for this system.
    """
    _find()


def plan(precision: Precision) -> tuple[PlannedFile, ...]:
    """The engine of a precision, named after the version that it needs."""
    return (PlannedFile(f"model.{precision}.rtx{short_version(_find())}.engine", precision, "gpu"),)


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds a portable engine from an ONNX file of the same precision.

    Raises:
        DataError: the graph is broken or of another precision, or the engine exists.
        SetupError: TensorRT-RTX is missing or cannot build the graph.
        ResourceError: memory or disk ran out.
    """
    assert request.onnx_path is not None
    module = _find()
    builder = EngineBuilder(module, title="TensorRT-RTX", timing_cache=None, has_gpu=_has_gpu())
    engine = EngineRequest(request.onnx_path, file.precision, request.artifact.batches)
    return {
        "tool": "TensorRT-RTX",
        "version": module.__version__,
        "device": "RTX GPUs of compute capability 8.0, 8.6, 8.9, 12.0 and later",
        "compute_capability": None,
        **builder.build(engine, request.folder / file.name),
    }


def _find() -> ModuleType:
    module = import_engine_package("tensorrt_rtx")
    if module is not None:
        return module
    system, machine = platform.system(), platform.machine()
    if system in ("Linux", "Windows") and machine.lower() in ("x86_64", "amd64"):
        raise TENSORRT_RTX.missing("Building RTX engines")
    raise SetupError(
        f"TensorRT for RTX exists only for Linux and Windows on x86-64, but this is {system} on"
        f" {machine}.\n"
        "  On a Jetson, use --trt. For RTX GPUs, export on another machine."
    )


def _has_gpu() -> bool:
    try:
        find_gpu()
    except SetupError:
        return False
    return True
