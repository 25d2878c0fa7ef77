"""Runs TensorRT engines, on the GPU and with the version that they were built for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from kdedge.errors import BackendUnavailable
from kdedge.runtime.cuda import open_cuda
from kdedge.targets.engines.engine import Engine, load_engine
from kdedge.targets.engines.package import import_engine_package, tensorrt_install_hint
from kdedge.targets.tensorrt.describe import TARGET


def check_environment() -> None:
    """Checks for the Python module, the NVIDIA driver, the CUDA runtime and a GPU.

    Raises:
        BackendUnavailable: the module, the driver or the GPU is missing.
        SetupError: one of them is broken, or the CUDA runtime is missing.
    """
    _import()
    open_cuda()


def load(
    path: Path, *, n_threads: int | None = None, built_with: Mapping[str, Any] | None = None
) -> Engine:
    """Loads an engine onto the first GPU.

    Args:
        path: the engine.
        n_threads: unused, as the GPU computes.
        built_with: what the engine was built with, for messages.

    Raises:
        BackendUnavailable: the module or the GPU is missing.
        SetupError: the engine is of another version or for another GPU.
        DataError: the engine is not one from images to logits.
    """
    del n_threads
    return load_engine(_import(), path, target=TARGET, built_with=built_with)


def _import() -> ModuleType:
    module = import_engine_package("tensorrt")
    if module is None:
        raise BackendUnavailable(
            "Running TensorRT engines needs tensorrt, which is not installed.\n"
            f"  {tensorrt_install_hint()}"
        )
    return module
