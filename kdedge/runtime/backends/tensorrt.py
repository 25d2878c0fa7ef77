"""TensorRT engines, on the GPU and with the version that they were built for."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.runtime.backends._cudart import open_cuda
from kdedge.runtime.backends._engine import Engine, load_engine
from kdedge.runtime.backends._protocol import NotHere
from kdedge.runtime.backends._tensorrt import import_engine_package, tensorrt_install_hint
from kdedge.runtime.machine import is_jetson

NAME = "tensorrt"
TARGET = "tensorrt"


def check_environment() -> None:
    """Looks for the Python module, the NVIDIA driver, the CUDA runtime and a GPU.

    Raises:
        NotHere: the module, the driver or the GPU is missing.
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
        NotHere: the module or the GPU is missing.
        SetupError: the engine is of another version or for another GPU.
        DataError: the engine does not take images and give logits.
    """
    del n_threads
    return load_engine(_import(), path, name=NAME, built_with=built_with)


def _import() -> Any:
    module = import_engine_package("tensorrt")
    if module is None:
        hint = tensorrt_install_hint(platform.system(), platform.machine(), jetson=is_jetson())
        raise NotHere(f"Running TensorRT engines needs tensorrt, which is not installed.\n  {hint}")
    return module
