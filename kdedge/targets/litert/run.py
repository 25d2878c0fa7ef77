"""Runs LiteRT (TensorFlow Lite) files on the CPU, with XNNPACK. It needs neither torch nor ONNX.

API: ai-edge-litert 2.3, https://ai.google.dev/edge/litert.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.files import read_bytes
from kdedge.native_lines import LOG_LINES, filter_native_stderr
from kdedge.runtime.machine import physical_cores
from kdedge.targets.cpu_backend import CpuModel
from kdedge.targets.litert import LITERT

# Name that the converter gives to the function in a file
SIGNATURE = "serving_default"


class LiteRtModel(CpuModel):
    """A loaded file."""

    name = "litert"
    package = LITERT

    def _open(self, module: Any, n_threads: int | None) -> None:
        data = read_bytes(self._path)
        n_threads = n_threads or physical_cores()
        with filter_native_stderr(LOG_LINES):
            self._model = module.Interpreter(model_content=data, num_threads=n_threads)
            self._model.allocate_tensors()
        (images,) = self._model.get_input_details()
        (logits,) = self._model.get_output_details()
        self._set_input([*map(int, images["shape"])], is_bytes=images["dtype"] is np.uint8)
        self._input = images["index"]
        self._output = logits["index"]

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        self._model.set_tensor(self._input, np.ascontiguousarray(images))
        self._model.invoke()
        logits: npt.NDArray[np.float32] = self._model.get_tensor(self._output)
        return logits  # a copy


load = LiteRtModel
