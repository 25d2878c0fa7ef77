"""Runs LiteRT (TensorFlow Lite) files on the CPU, with XNNPACK. It takes neither torch nor ONNX.

API: ai-edge-litert 2.3, https://ai.google.dev/edge/litert.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError, KdedgeError, ResourceError, SetupError, is_out_of_memory
from kdedge.files import read_bytes
from kdedge.runtime.artifact import INPUT_NAME, Pixels
from kdedge.runtime.machine import physical_cores
from kdedge.runtime.native_lines import lines_held
from kdedge.runtime.threads import number_of_threads
from kdedge.targets.litert.describe import LITERT

NAME = "litert"
SIGNATURE = "serving_default"
"""Name of the function in a file, as the converter calls it."""

_MODULE = "ai_edge_litert.interpreter"
_IDENTIFIER = b"TFL3"
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
        DataError: the file is broken, or not an image classifier.
        ResourceError: memory ran out.
    """
    del built_with
    runtime = _import()
    data, lines = read_bytes(path), list[str]()
    n_threads = n_threads or number_of_threads() or physical_cores()
    if data[4:8] != _IDENTIFIER:
        raise _explain(ValueError("it does not begin as a LiteRT file"), path, "loaded", lines)
    try:
        with lines_held(_LOG_LINE) as lines:
            interpreter = runtime.Interpreter(model_content=data, num_threads=n_threads)
            interpreter.allocate_tensors()
        return LiteRtModel(interpreter, path)
    except (ValueError, RuntimeError, MemoryError) as error:
        raise _explain(error, path, "loaded", lines) from error


class LiteRtModel:
    """A loaded file. Several threads may use it.

    Args:
        interpreter: LiteRT's interpreter, with its memory allocated.
        path: the file, for messages.

    Raises:
        DataError: the file is not one from images to logits.
    """

    name = NAME

    def __init__(self, interpreter: Any, path: Path) -> None:
        takes, gives = interpreter.get_input_details(), interpreter.get_output_details()
        is_classifier = (
            len(takes) == len(gives) == 1
            and takes[0]["dtype"] in _PIXELS
            and len(takes[0]["shape"]) == 4
            and gives[0]["dtype"] is np.float32
            and len(gives[0]["shape"]) == 2
        )
        if not is_classifier:
            raise DataError(
                f"{path} takes {_described(takes)} and gives {_described(gives)}.\n"
                f"  Expected {INPUT_NAME} [B, 3, S, S] and logits [B, C]: a file that `kdedge"
                " export` wrote."
            )
        n_images, *image_shape = map(int, takes[0]["shape"])
        self.batches = (n_images, n_images)
        self.pixels = _PIXELS[takes[0]["dtype"]]
        self.image_shape = tuple(image_shape)
        self._path, self._interpreter = path, interpreter
        self._input, self._output = takes[0]["index"], gives[0]["index"]
        self._running = threading.Lock()  # an interpreter has one set of intermediate values

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C]; see `Backend.run`.

        Raises:
            DataError: the file does not take these images, or fails.
            ResourceError: memory ran out.
        """
        self._check(images)
        try:
            with self._running:
                self._interpreter.set_tensor(self._input, np.ascontiguousarray(images))
                self._interpreter.invoke()
                logits: npt.NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        except (ValueError, RuntimeError, MemoryError) as error:
            raise _explain(error, self._path, "run", []) from error
        return logits  # a copy

    def _check(self, images: npt.NDArray[Any]) -> None:
        dtype = np.uint8 if self.pixels == "uint8" else np.float32
        expected = (self.batches[0], *self.image_shape)
        if images.dtype != dtype or images.shape != expected:
            raise DataError(
                f"{self._path} cannot be run on {images.dtype} {list(images.shape)}; expected"
                f" {np.dtype(dtype)} {list(expected)}.\n"
                "  Export again, as the file and the artifact do not match."
            )

    def describe(self) -> str:
        """LiteRT's version and where it runs."""
        return f"{NAME} {version_of()} CPU"

    def close(self) -> None:
        """Frees the model."""
        self._interpreter = None


def version_of() -> str:
    """LiteRT's version."""
    return version(LITERT.distributions[0])


def _import() -> Any:
    """The module `ai_edge_litert.interpreter`."""
    try:
        with lines_held(_LOG_LINE):
            runtime = importlib.import_module(_MODULE)
    except ModuleNotFoundError as error:
        if error.name not in (_MODULE, LITERT.module):
            raise _broken(error) from error
        runtime = None
    except (ImportError, OSError) as error:
        raise _broken(error) from error
    if not hasattr(runtime, "Interpreter"):  # a folder of type stubs can be imported too
        raise LITERT.missing("Running LiteRT files")
    return runtime


def _broken(error: Exception) -> SetupError:
    return SetupError(
        f"ai-edge-litert is installed, but cannot be imported: {error}.\n"
        "  Reinstall it with: pip install --force-reinstall ai-edge-litert"
    )


def _described(ports: Any) -> list[str]:
    """Name, type and shape of a file's inputs or outputs."""
    return [f"{one['name']} {np.dtype(one['dtype'])} {one['shape'].tolist()}" for one in ports]


def _explain(error: Exception, path: Path, what: str, lines: list[str]) -> KdedgeError:
    """The error for a file that cannot be loaded or run."""
    text = " ".join(" ".join([str(error), *lines]).split()).rstrip(".")
    problem = f"{path} cannot be {what} by ai-edge-litert {version_of()}: {text[:300]}.\n"
    if is_out_of_memory(error):
        return ResourceError(f"{problem}  Close other programs.")
    return DataError(f"{problem}  Copy the file from the export again, or export again.")
