"""Runs ExecuTorch programs on the CPU, with the runtime of its Python package, which needs torch.

All programs of a process share one pool of threads, and XNNPACK keeps a pointer to it: its size can
be changed only while no program is loaded.
"""

from __future__ import annotations

import importlib
import logging
import threading
import weakref
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.files import read_bytes
from kdedge.native_lines import LOG_LINES, filter_native_stderr
from kdedge.targets.cpu_backend import CpuModel
from kdedge.targets.executorch import EXECUTORCH

# Name of the method that returns the smallest batch; a program's shapes have only the largest
SMALLEST_BATCH = "smallest_batch"

_BYTE = 0  # code of torch.uint8 in a program
_loaded: weakref.WeakSet[ExecuTorchModel] = weakref.WeakSet()
_loading = threading.Lock()

log = logging.getLogger(__name__)


class ExecuTorchModel(CpuModel):
    """A loaded program."""

    name = "executorch"
    package = EXECUTORCH

    def _open(self, module: Any, n_threads: int | None) -> None:
        with _loading, filter_native_stderr(LOG_LINES):
            _set_threads(module, n_threads)
            # The program owns the bytes that its methods read, so it must live as long as they do
            self._model = open_runtime().load_program(read_bytes(self._path))
            self._method = self._model.load_method("forward")
            (low,) = self._model.load_method(SMALLEST_BATCH).execute([])
        images = self._method.metadata.input_tensor_meta(0)
        self._set_input(images.sizes(), is_bytes=images.dtype() == _BYTE)
        self.batches = int(low), self.batches[1]
        _loaded.add(self)

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        import torch  # which the runtime itself needs

        # torch warns about arrays that are read-only
        tensor = torch.from_numpy(np.require(images, requirements=["C", "W"]))
        logits: npt.NDArray[np.float32] = self._method.execute([tensor])[0].numpy()  # a copy
        return logits

    def close(self) -> None:
        """Frees the program."""
        self._method = self._model = None
        _loaded.discard(self)


load = ExecuTorchModel


def open_runtime() -> Any:
    """ExecuTorch's runtime."""
    return importlib.import_module("executorch.runtime").Runtime.get()


def _set_threads(native: Any, n_threads: int | None) -> None:
    """Sets the number of threads of all programs, unless a program is loaded."""
    current = native._threadpool_get_thread_count()
    if n_threads is not None and n_threads != current and len(_loaded) == 0:
        native._unsafe_reset_threadpool(n_threads)
        current = n_threads
    if n_threads not in (None, current):
        log.warning(
            f"ExecuTorch runs on {current} threads instead of {n_threads}: the programs of a"
            " process share their threads, and one is loaded already."
        )
