"""Runs ONNX files on the CPU with ONNX Runtime, on any machine."""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.runtime.artifact import INPUT_NAME
from kdedge.runtime.process import may_spin
from kdedge.targets.cpu_backend import CpuModel
from kdedge.targets.onnx import ONNX_RUNTIME

_FATAL = 4


class OnnxSession(CpuModel):
    """A loaded ONNX file, with its external data from the same folder.

    Calls from several threads run in parallel.
    """

    name = "onnxruntime"
    package = ONNX_RUNTIME
    # Messages about opsets or operators that are newer than this ONNX Runtime
    too_new = ("NOT_IMPLEMENTED", "is under development", "Unsupported model IR version")

    def _open(self, module: Any, n_threads: int | None) -> None:
        self._running = contextlib.nullcontext()
        options = module.SessionOptions()
        options.log_severity_level = _FATAL  # failures are exceptions; warnings do not help
        options.intra_op_num_threads = n_threads or 0
        if _has_fixed_ranges(self._path):
            # Without it, processors without VNNI add two products of bytes in 16 bits and saturate
            options.add_session_config_entry("session.x64quantprecision", "1")
        if not may_spin():
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # After a call, spinning threads would take cores from the preparation of the next one
        options.add_session_config_entry("session.force_spinning_stop", "1")
        with contextlib.redirect_stdout(None):  # it prints before it retries without a provider
            self._model = module.InferenceSession(
                str(self._path), options, providers=["CPUExecutionProvider"]
            )
        images = self._model.get_inputs()[0]
        logits = self._model.get_outputs()[0]
        sizes = [size if isinstance(size, int) else None for size in images.shape]
        self._set_input(sizes, is_bytes=images.type == "tensor(uint8)")
        self._output = logits.name
        self.metadata: dict[str, str] = self._model.get_modelmeta().custom_metadata_map

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        (outputs,) = self._model.run([self._output], {INPUT_NAME: images})
        return np.asarray(outputs, dtype=np.float32)


load = OnnxSession


def _has_fixed_ranges(path: Path) -> bool:
    """Whether a file has Q/DQ: a node's field `op_type` (number 4) with this text of 14 bytes.

    False for a file that is empty or cannot be read, about which ONNX Runtime raises an error.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(b'"\x0eQuantizeLinear') >= 0
    except (OSError, ValueError):
        return False
