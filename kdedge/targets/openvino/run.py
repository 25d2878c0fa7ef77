"""Runs OpenVINO files on the CPU."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.runtime.artifact import INPUT_NAME
from kdedge.targets.cpu_backend import CpuModel
from kdedge.targets.openvino import OPENVINO


class OpenVinoModel(CpuModel):
    """A loaded OpenVINO file, with its weights from the same folder."""

    name = "openvino"
    package = OPENVINO

    def _open(self, module: Any, n_threads: int | None) -> None:
        self._core = module.Core()
        self._model = self._core.read_model(self._path, self._path.with_suffix(".bin"))
        # OpenVINO keeps the metadata of the ONNX file here
        has_any = self._model.has_rt_info("framework")
        stated = self._model.get_rt_info("framework").astype(dict) if has_any else {}
        self.metadata = {key: value.astype(str) for key, value in stated.items()}
        images = self._model.input(0)
        sizes = [
            size.get_length() if size.is_static else None for size in images.get_partial_shape()
        ]
        self._set_input(sizes, is_bytes=images.get_element_type().get_type_name() == "u8")
        self._settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            # Pinned threads of two processes would share a core while others are idle
            "ENABLE_CPU_PINNING": False,
        }
        if n_threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = n_threads
        size = self.batches[1] or 1
        self._requests: dict[int | None, Any] = {size: self._compiled(size)}

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        size = self.batches[1] or (1 if len(images) == 1 else None)
        if size not in self._requests:
            self._requests[size] = self._compiled(size)
        logits = self._requests[size].infer({INPUT_NAME: images})[0]
        return np.array(logits, dtype=np.float32)  # a copy: the request reuses its array

    def _compiled(self, size: int | None) -> Any:
        """A request for a batch size; None for any size, which is slower on small models."""
        model = self._model
        if size is not None and self.batches[1] is None:
            model = model.clone()
            model.reshape([size, *self.image_shape])
        with _signal_stack_kept():
            compiled = self._core.compile_model(model, "CPU", self._settings)
        return compiled.create_infer_request()

    def close(self) -> None:
        """Frees the model."""
        self._requests = {}
        self._model = None


load = OpenVinoModel

_STACK_BYTES = 64  # a stack_t is smaller on all systems: an address, a size and flags


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Context that restores this thread's signal stack.

    Each compiled model installs its own signal stack, and restores the previous one when it is
    freed. If models are not freed in reverse order, the stack of a freed model stays installed, and
    the next Ctrl-C ends the process with a segmentation fault.
    """
    change = ctypes.CDLL(None).sigaltstack if os.name == "posix" else None
    stack = ctypes.create_string_buffer(_STACK_BYTES)
    if change is None or change(None, stack) != 0:
        yield
        return
    try:
        yield
    finally:
        change(stack, None)
