"""TensorRT for RTX engines: built without a GPU, compiled for the GPU at their first use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.errors import MissingPackage
from kdedge.runtime.backends._cudart import open_cuda
from kdedge.runtime.backends._engine import Engine, load_engine
from kdedge.runtime.backends._tensorrt import import_engine_package

NAME = "tensorrt-rtx"
TARGET = "tensorrt-rtx"


def check_environment() -> None:
    """Looks for the Python module, the NVIDIA driver, the CUDA runtime and a GPU.

    Raises:
        MissingPackage: the module is not installed.
        NotHere: the driver or the GPU is missing.
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
        n_threads: of no use here.
        built_with: what the engine was built with, for the message where it cannot be loaded.

    Raises:
        MissingPackage: the module is not installed.
        SetupError: there is no GPU, or the engine is of another version or for another GPU.
        DataError: the engine does not take images and give logits.
    """
    del n_threads
    return load_engine(_import(), path, name=NAME, built_with=built_with)


def _import() -> Any:
    module = import_engine_package("tensorrt_rtx")
    if module is None:
        raise MissingPackage(NAME, extra="trt-rtx", purpose="Running TensorRT-RTX engines")
    return module
