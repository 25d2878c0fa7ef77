"""Runs ExecuTorch programs on the CPU, with the runtime of its Python package, which needs torch.

All programs of a process share one pool of threads, and XNNPACK keeps a pointer to it: its size can
be changed only while no program is loaded.
"""

from __future__ import annotations

import importlib
import logging
import re
import threading
import weakref
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.files import read_bytes
from kdedge.runtime.artifact import Pixels
from kdedge.runtime.native_lines import lines_held, quiet
from kdedge.runtime.threads import number_of_threads
from kdedge.targets.cpu_backend import CpuModel, explaining
from kdedge.targets.executorch import EXECUTORCH

NAME = "executorch"
SMALLEST_BATCH = "smallest_batch"
"""Name of the method that gives the smallest batch; a program's shapes have only the largest."""

LOG_LINE = re.compile(rb"^\[\w+\.(cpp|h):\d+\]")
"""How lines begin that the runtime writes to stderr, of facts and of errors."""

_NATIVE = f"{NAME}.extension.pybindings.portable_lib"
# Numbers of torch's types in a program
_PIXELS: dict[int, Pixels] = {6: "float", 0: "uint8"}
_loaded: weakref.WeakSet[ExecuTorchModel] = weakref.WeakSet()
_loading = threading.Lock()

log = logging.getLogger(__name__)


def check_environment() -> None:
    """Checks for ExecuTorch.

    Raises:
        MissingPackage: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    open_runtime()


def load(
    path: Path, *, n_threads: int | None = None, built_with: Mapping[str, Any] | None = None
) -> ExecuTorchModel:
    """Loads a program.

    Args:
        path: the file, which ends in .pte.
        n_threads: threads of a call; None: the number in OMP_NUM_THREADS, or else ExecuTorch's.
            While another program is loaded, its number stays.
        built_with: not used.

    Raises:
        MissingPackage: ExecuTorch is not installed.
        DataError: the file is broken.
        ResourceError: memory ran out.
    """
    del built_with
    runtime = open_runtime()
    with explaining(path, "loaded", f"{NAME} {version_of()}"), _loading, lines_held(LOG_LINE):
        _set_threads(n_threads or number_of_threads())
        program = runtime.load_program(read_bytes(path))
        methods = {name: program.load_method(name) for name in program.method_names}
        return ExecuTorchModel(program, methods, path)


class ExecuTorchModel(CpuModel):
    """A loaded program.

    Args:
        program: holds the bytes that its methods read, so it must live as long as they do.
        methods: its methods by name.
        path: the file, for messages.
    """

    name = NAME

    def __init__(self, program: Any, methods: Mapping[str, Any], path: Path) -> None:
        takes = methods["forward"].metadata.input_tensor_meta(0)
        largest, *image_shape = takes.sizes()
        super().__init__(
            path,
            f"{NAME} {version_of()}",
            batches=(int(methods[SMALLEST_BATCH].execute([])[0]), largest),
            pixels=_PIXELS[takes.dtype()],
            image_shape=tuple(image_shape),
        )
        self._program, self._method = program, methods["forward"]
        self._torch: Any = importlib.import_module("torch")
        _loaded.add(self)

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        # torch warns of arrays that cannot be written to
        tensor = self._torch.from_numpy(np.require(images, requirements=["C", "W"]))
        logits: npt.NDArray[np.float32] = self._method.execute([tensor])[0].numpy()  # a copy
        return logits

    def close(self) -> None:
        """Frees the program."""
        self._method = self._program = None
        _loaded.discard(self)


def open_runtime() -> Any:
    """ExecuTorch's runtime.

    Raises:
        MissingPackage: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    with lines_held(LOG_LINE):
        # The native library first, which the runtime would load later
        for module, name in ((_NATIVE, "_load_program"), (f"{NAME}.runtime", "Runtime")):
            loaded = EXECUTORCH.load(name, purpose="ExecuTorch", module=module, quietly=quiet)
        return loaded.Runtime.get()


def version_of() -> str:
    """ExecuTorch's version."""
    return version(NAME)


def _set_threads(n_threads: int | None) -> None:
    """Sets the number of threads of all programs, if none is loaded."""
    native: Any = importlib.import_module(_NATIVE)
    present = native._threadpool_get_thread_count()
    if n_threads is not None and n_threads != present and len(_loaded) == 0:
        native._unsafe_reset_threadpool(n_threads)
        present = n_threads
    if n_threads not in (None, present):
        log.warning(
            "ExecuTorch runs on %d threads instead of %d: the programs of a process share their"
            " threads, and one is loaded already.",
            *(present, n_threads),
        )
