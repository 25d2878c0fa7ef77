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

from kdedge.errors import KdedgeError, is_out_of_memory
from kdedge.files import read_bytes
from kdedge.runtime.artifact import Pixels
from kdedge.runtime.machine import physical_cores
from kdedge.runtime.native_lines import lines_held
from kdedge.runtime.threads import number_of_threads
from kdedge.targets.cpu_backend import CpuModel, explained, import_runtime
from kdedge.targets.litert import LITERT

NAME = "litert"
SIGNATURE = "serving_default"
"""Name of the function in a file, as the converter calls it."""

_MODULE = "ai_edge_litert.interpreter"
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
    data, lines = read_bytes(path), list[str]()
    n_threads = n_threads or number_of_threads() or physical_cores()
    try:
        with lines_held(_LOG_LINE) as lines:
            interpreter = runtime.Interpreter(model_content=data, num_threads=n_threads)
            interpreter.allocate_tensors()
        return LiteRtModel(interpreter, path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise _explain(error, path, "loaded", lines) from error


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
            f"{NAME} {version_of()}",
            batches=(n_images, n_images),
            pixels=_PIXELS[takes["dtype"]],
            image_shape=tuple(image_shape),
        )
        self._interpreter = interpreter
        self._input, self._output = takes["index"], gives["index"]

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C]; see `Backend.run`.

        Raises:
            DataError: the file does not take these images, or fails.
            ResourceError: memory ran out.
        """
        self.check(images)
        try:
            with self.running:
                self._interpreter.set_tensor(self._input, np.ascontiguousarray(images))
                self._interpreter.invoke()
                logits: npt.NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise _explain(error, self._path, "run", []) from error
        return logits  # a copy

    def close(self) -> None:
        """Frees the model."""
        self._interpreter = None


def version_of() -> str:
    """LiteRT's version."""
    return version(LITERT.distributions[0])


def _import() -> Any:
    """The module `ai_edge_litert.interpreter`."""
    return import_runtime(
        LITERT,
        "Interpreter",
        module=_MODULE,
        purpose="Running LiteRT files",
        quietly=lambda: lines_held(_LOG_LINE),
    )


def _explain(error: Exception, path: Path, what: str, lines: list[str]) -> KdedgeError:
    """The error for a file that cannot be loaded or run."""
    runtime = f"ai-edge-litert {version_of()}"
    reason = " ".join([str(error), *lines])
    return explained(reason, path, what, runtime, is_memory=is_out_of_memory(error))
