"""Builds TensorRT engines, for the GPU of the machine that builds them, such as a Jetson."""

from __future__ import annotations

import logging
import os
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from kdedge.errors import SetupError
from kdedge.messages import option
from kdedge.runtime.artifact import Precision
from kdedge.runtime.cuda import Gpu, find_gpu
from kdedge.targets.base import BuildRequest, PlannedFile
from kdedge.targets.engines.builder import EngineBuilder
from kdedge.targets.engines.package import engine_package, jetson_wheel_problem, short_version
from kdedge.targets.tensorrt import TENSORRT

log = logging.getLogger(__name__)


def check_environment() -> None:
    """Checks for TensorRT and a GPU.

    Raises:
        SetupError: TensorRT is not installed, or there is no GPU.
    """
    try:
        engine_package(TENSORRT)
        find_gpu()
    except SetupError as error:
        if find_spec("tensorrt_rtx") is None:
            raise
        rtx = option("--trt-rtx", 'targets=["tensorrt-rtx"]')
        raise SetupError(
            f"{error}\n"
            f"  tensorrt-rtx is installed: use {rtx} to build engines for RTX GPUs (not for a"
            " Jetson). It is not used automatically."
        ) from error
    if (problem := jetson_wheel_problem()) is not None:
        log.warning("%s", problem)


def plan(precision: Precision) -> PlannedFile:
    """The engine of a precision, named after this machine's TensorRT and GPU."""
    tag = _tag(engine_package(TENSORRT), find_gpu())
    return PlannedFile(f"model.{precision}.{tag}.engine", precision, "gpu")


def build(file: PlannedFile, request: BuildRequest) -> dict[str, Any]:
    """Builds an engine from an ONNX file of the same precision.

    Raises:
        SetupError: TensorRT or a GPU is missing, or TensorRT cannot build the graph.
        ResourceError: memory or disk ran out.
    """
    module = engine_package(TENSORRT)
    gpu = find_gpu()
    user_caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    caches = user_caches / "kdedge" / "timing"
    device = {
        "device": gpu.name,
        "compute_capability": gpu.compute_capability,
        "multiprocessors": gpu.n_multiprocessors,
    }
    builder = EngineBuilder(
        module, title="TensorRT", timing_cache=caches / f"{_tag(module, gpu)}.cache"
    )
    return builder.build_file(request, device)


def _tag(module: ModuleType, gpu: Gpu) -> str:
    """Part of an engine's name: version, compute capability, GPU and number of multiprocessors."""
    name = re.sub("[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    capability = gpu.compute_capability.replace(".", "")
    return f"trt{short_version(module)}-sm{capability}-{name}-{gpu.n_multiprocessors}"
