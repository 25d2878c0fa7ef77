"""Runs LiteRT (TensorFlow Lite) files on the CPU, with XNNPACK. It takes neither torch nor ONNX.

API: ai-edge-litert 2.3, https://ai.google.dev/edge/litert.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.files import read_bytes
from kdedge.runtime.artifact import Pixels
from kdedge.runtime.machine import physical_cores
from kdedge.runtime.native_lines import lines_held
from kdedge.runtime.threads import number_of_threads
from kdedge.targets.cpu_backend import CpuModel, explaining
from kdedge.targets.litert import LITERT

NAME = "litert"
SIGNATURE = "serving_default"
"""Name of the function in a file, as the converter calls it."""

_LOG_LINE = re.compile(rb"^(INFO|WARNING|ERROR): |^[IWE]\d{4} ")
_PIXELS: dict[Any, Pixels] = {np.float32: "float", np.uint8: "uint8"}


def check_environment() -> None:
    """Checks for LiteRT.

    Raises:
        BackendUnavailable: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    _import()


def load(
    path: Path, *, n_threads: int | None = None, built_with: Mapping[str, Any] | None = None
) -> LiteRtModel:
    """Loads a file.

    Args:
        path: the file, which ends in .tflite.
        n_threads: threads of a call; None: the number in OMP_NUM_THREADS, or else one per
            physical core.
        built_with: not used.

    Raises:
        BackendUnavailable: LiteRT is not installed.
        SetupError: it is installed, but cannot be imported.
        DataError: the file is broken.
        ResourceError: memory ran out.
    """
    del built_with
    runtime = _import()
    n_threads = n_threads or number_of_threads() or physical_cores()
    with explaining(path, "loaded", _version()), lines_held(_LOG_LINE):
        interpreter = runtime.Interpreter(model_content=read_bytes(path), num_threads=n_threads)
        interpreter.allocate_tensors()
        return LiteRtModel(interpreter, path)


class LiteRtModel(CpuModel):
    """A loaded file.

    Args:
        interpreter: LiteRT's interpreter, with its memory allocated.
        path: the file, for messages.
    """

    name = NAME

    def __init__(self, interpreter: Any, path: Path) -> None:
        (takes,), (gives,) = interpreter.get_input_details(), interpreter.get_output_details()
        n_images, *image_shape = map(int, takes["shape"])
        super().__init__(
            path,
            _version(),
            batches=(n_images, n_images),
            pixels=_PIXELS[takes["dtype"]],
            image_shape=tuple(image_shape),
        )
        self._interpreter = interpreter
        self._input, self._output = takes["index"], gives["index"]

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(images))
        self._interpreter.invoke()
        logits: npt.NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return logits  # a copy

    def close(self) -> None:
        """Frees the model."""
        self._interpreter = None


def _version() -> str:
    return f"ai-edge-litert {version('ai-edge-litert')}"


def _import() -> Any:
    """The module `ai_edge_litert.interpreter`."""
    return LITERT.load(
        "Interpreter",
        purpose="Running LiteRT files",
        module="ai_edge_litert.interpreter",
        quietly=lambda: lines_held(_LOG_LINE),
    )
