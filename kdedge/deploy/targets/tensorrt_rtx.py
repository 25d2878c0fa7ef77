"""TensorRT for RTX: engines for GeForce and RTX GPUs since Ampere, built without a GPU.

One file serves Linux and Windows and all those GPUs; the first run on one compiles its kernels. It
loads in the TensorRT-RTX version that built it alone. Jetsons and data centers have TensorRT.
"""

from __future__ import annotations

import platform
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from kdedge.deploy.targets._engine import BuiltEngine, EngineBuilder, EngineRequest
from kdedge.deploy.targets._platform import find_cuda_device
from kdedge.errors import MissingPackage, SetupError
from kdedge.runtime.artifact import Precision
from kdedge.runtime.backends._tensorrt import import_engine_package

NAME = "tensorrt-rtx"


def check_environment() -> None:
    """Says what is missing for building engines; a GPU is not needed.

    Raises:
        MissingPackage: tensorrt-rtx is not installed.
        SetupError: there is none for this system.
    """
    _find()


def describe() -> dict[str, Any]:
    """Gives the package's version and the devices that engines are for."""
    return {
        "tool": "TensorRT-RTX",
        "version": _find().__version__,
        "device": "RTX GPUs of compute capability 8.0, 8.6, 8.9, 12.0 and later",
        "compute_capability": None,
    }


def engine_name(precision: Precision) -> str:
    """The file name of an engine that is built here."""
    version = ".".join(_find().__version__.split(".")[:3])
    return f"model.{precision}.rtx{version}.engine"


def export(
    onnx_path: Path,
    folder: Path,
    *,
    precision: Precision,
    max_batch: int = 32,
    batch: Literal["dynamic"] | int = "dynamic",
) -> BuiltEngine:
    """Builds a portable engine from an ONNX file that holds the precision already.

    Args:
        onnx_path: the graph.
        folder: where the engine goes, named by `engine_name`.
        precision: checked against the graph.
        max_batch: the largest batch of a dynamic graph.
        batch: `dynamic`, or the one batch size.

    Raises:
        DataError: the graph is broken or of another precision, or the engine exists.
        SetupError: TensorRT-RTX is missing or cannot build the graph.
        ResourceError: memory or disk ran out.
    """
    builder = EngineBuilder(_find(), title="TensorRT-RTX", timing_cache=None, has_gpu=_has_gpu())
    request = EngineRequest(onnx_path, precision, batch, max_batch)
    built = builder.build(request, folder / engine_name(precision))
    return BuiltEngine(built.path, describe() | built.built_with)


def _find() -> ModuleType:
    module = import_engine_package("tensorrt_rtx")
    if module is not None:
        return module
    system, machine = platform.system(), platform.machine()
    if system in ("Linux", "Windows") and machine.lower() in ("x86_64", "amd64"):
        raise MissingPackage("tensorrt-rtx", extra="trt-rtx", purpose="Building RTX engines")
    raise SetupError(
        f"TensorRT for RTX has packages for Linux and Windows on x86-64 only; this is {system} on"
        f" {machine}.\n  On a Jetson use --trt; for RTX GPUs export on another machine."
    )


def _has_gpu() -> bool:
    try:
        find_cuda_device()
    except SetupError:
        return False
    return True
