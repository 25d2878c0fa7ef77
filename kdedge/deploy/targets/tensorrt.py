"""TensorRT: engines for the GPU of the machine that builds them, as a Jetson's."""

from __future__ import annotations

import logging
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from kdedge.deploy.targets._engine import BuiltEngine, EngineBuilder, EngineRequest
from kdedge.deploy.targets._platform import (
    CudaDevice,
    find_cuda_device,
    jetson_wheel_problem,
)
from kdedge.errors import SetupError
from kdedge.runtime.artifact import Precision
from kdedge.runtime.backends._tensorrt import import_engine_package, tensorrt_install_hint
from kdedge.runtime.machine import is_jetson

NAME = "tensorrt"

log = logging.getLogger(__name__)


def check_environment() -> None:
    """Says what is missing for building engines.

    Raises:
        SetupError: TensorRT is not installed, or there is no CUDA device.
    """
    _find()
    if (problem := jetson_wheel_problem()) is not None:
        log.warning("%s", problem)


def describe() -> dict[str, Any]:
    """Gives the package's version and the device that engines are for."""
    module, device = _find()
    return {
        "tool": "TensorRT",
        "version": module.__version__,
        "device": device.name,
        "compute_capability": device.capability,
        "multiprocessors": device.n_multiprocessors,
    }


def engine_name(precision: Precision) -> str:
    """The file name of an engine that is built here."""
    return f"model.{precision}.{_tag(*_find())}.engine"


def export(
    onnx_path: Path,
    folder: Path,
    *,
    precision: Precision,
    max_batch: int = 32,
    batch: Literal["dynamic"] | int = "dynamic",
) -> BuiltEngine:
    """Builds an engine from an ONNX file that holds the precision already.

    Args:
        onnx_path: the graph.
        folder: where the engine goes, named by `engine_name`.
        precision: checked against the graph.
        max_batch: the largest batch of a dynamic graph.
        batch: `dynamic`, or the one batch size.

    Raises:
        DataError: the graph is broken or of another precision, or the engine exists.
        SetupError: TensorRT or a device is missing, or cannot do it.
        ResourceError: memory or disk ran out.
    """
    module, device = _find()
    cache = timing_cache_path(_tag(module, device), os.environ)
    builder = EngineBuilder(module, title="TensorRT", timing_cache=cache, has_gpu=True)
    request = EngineRequest(onnx_path, precision, batch, max_batch)
    built = builder.build(request, folder / engine_name(precision))
    return BuiltEngine(built.path, describe() | built.built_with)


def _find() -> tuple[ModuleType, CudaDevice]:
    module = import_engine_package("tensorrt")
    if module is None:
        hint = tensorrt_install_hint(platform.system(), platform.machine(), jetson=is_jetson())
        raise SetupError(f"TensorRT engines need tensorrt, which is not installed.\n  {hint}")
    return module, find_cuda_device()


def _tag(module: ModuleType, device: CudaDevice) -> str:
    """What an engine depends on: the version, the compute capability, the GPU and its size."""
    version = ".".join(module.__version__.split(".")[:3])
    gpu = re.sub("[^a-z0-9]+", "-", device.name.lower()).strip("-")
    major, minor = device.compute_capability
    return f"trt{version}-sm{major}{minor}-{gpu}-{device.n_multiprocessors}"


def timing_cache_path(tag: str, environment: Mapping[str, str]) -> Path:
    """Where the measurements of a device's kernels are kept.

    Args:
        tag: version, compute capability and GPU.
        environment: may move the user's caches by XDG_CACHE_HOME.
    """
    home = environment.get("XDG_CACHE_HOME")
    root = Path(home) if home else Path.home() / ".cache"
    return root / "kdedge" / "timing" / f"{tag}.cache"
