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

from kdedge.errors import (
    BackendUnavailable,
    DataError,
    KdedgeError,
    ResourceError,
    SetupError,
    is_out_of_memory,
)
from kdedge.files import read_bytes
from kdedge.runtime.artifact import Pixels
from kdedge.runtime.native_lines import lines_held
from kdedge.runtime.threads import number_of_threads
from kdedge.targets.executorch.describe import EXECUTORCH
from kdedge.targets.quiet import quiet

NAME = "executorch"
SMALLEST_BATCH = "smallest_batch"
"""Name of the method that gives the smallest batch; a program's shapes have only the largest."""

LOG_LINE = re.compile(rb"^\[\w+\.(cpp|h):\d+\]")
"""How lines begin that the runtime writes to stderr, of facts and of errors."""

_XNNPACK = "XnnpackBackend"
_N_REASONS = 2
_MODULE = f"{NAME}.runtime"
# Numbers of torch's types in a program
_PIXELS: dict[int, Pixels] = {6: "float", 0: "uint8"}
_FLOAT = 6
_IDENTIFIER = b"ET"  # the format's version follows

_loaded: weakref.WeakSet[ExecuTorchModel] = weakref.WeakSet()
_loading = threading.Lock()

log = logging.getLogger(__name__)


def check_environment() -> None:
    """Checks for ExecuTorch with XNNPACK.

    Raises:
        MissingPackage: it is not installed.
        BackendUnavailable: it was built without XNNPACK.
        SetupError: it is installed, but cannot be imported.
    """
    with lines_held(LOG_LINE):
        runtime = import_runtime().Runtime.get()
        has_xnnpack = runtime.backend_registry.is_available(_XNNPACK)
    if not has_xnnpack:
        raise BackendUnavailable(
            f"executorch {version_of()} was built without XNNPACK, which computes the programs.\n"
            "  Reinstall it with: pip install --force-reinstall executorch"
        )


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
        BackendUnavailable: it was built without XNNPACK.
        DataError: the file is broken, or not an image classifier.
        ResourceError: memory ran out.
    """
    del built_with
    check_environment()
    data, lines = read_bytes(path), list[str]()
    if data[4:6] != _IDENTIFIER:  # the runtime would end the process
        raise _explain(RuntimeError("it does not begin as a program"), path, "loaded", lines)
    try:
        with _loading, lines_held(LOG_LINE) as lines:
            _set_threads(n_threads or number_of_threads())
            program = import_runtime().Runtime.get().load_program(data)
            methods = {name: program.load_method(name) for name in program.method_names}
            return ExecuTorchModel(program, methods, path)
    except (RuntimeError, MemoryError) as error:
        raise _explain(error, path, "loaded", lines) from error


class ExecuTorchModel:
    """A loaded program. Several threads may use it.

    Args:
        program: holds the bytes that its methods read, so it must live as long as they do.
        methods: its methods by name.
        path: the file, for messages.

    Raises:
        DataError: the program is not one from images to logits.
    """

    name = NAME

    def __init__(self, program: Any, methods: Mapping[str, Any], path: Path) -> None:
        takes, gives = _described(methods.get("forward"))
        is_classifier = (
            SMALLEST_BATCH in methods
            and len(takes) == len(gives) == 1
            and takes[0][0] in _PIXELS
            and len(takes[0][1]) == 4
            and gives[0][0] == _FLOAT
            and len(gives[0][1]) == 2
        )
        if not is_classifier:
            raise DataError(
                f"{path} takes {takes} and gives {gives} (type, shape), with the methods"
                f" {sorted(methods)}.\n"
                f"  Expected images and logits, and the method {SMALLEST_BATCH}: a file that"
                " `kdedge export` wrote."
            )
        dtype, (largest, *image_shape) = takes[0]
        self.batches = (int(methods[SMALLEST_BATCH].execute([])[0]), largest)
        self.pixels = _PIXELS[dtype]
        self.image_shape = tuple(image_shape)
        self._path, self._program, self._method = path, program, methods["forward"]
        self._torch: Any = importlib.import_module("torch")
        self._running = threading.Lock()  # a method has one set of intermediate values
        _loaded.add(self)

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C]; see `Backend.run`.

        Raises:
            DataError: the program does not take these images, or fails.
            ResourceError: memory ran out.
        """
        self._check(images)
        # torch warns of arrays that cannot be written to
        tensor = self._torch.from_numpy(np.require(images, requirements=["C", "W"]))
        try:
            with self._running:
                logits = self._method.execute([tensor])[0]  # a copy
        except (RuntimeError, MemoryError) as error:
            raise _explain(error, self._path, "run", []) from error
        found: npt.NDArray[np.float32] = logits.numpy()
        return found

    def _check(self, images: npt.NDArray[Any]) -> None:
        dtype = np.uint8 if self.pixels == "uint8" else np.float32
        low, high = self.batches
        fits = images.shape[1:] == self.image_shape and low <= len(images) <= high
        if images.dtype != dtype or not fits:
            sizes = str(low) if low == high else f"{low} to {high}"
            raise DataError(
                f"{self._path} cannot be run on {images.dtype} {list(images.shape)}; expected"
                f" {np.dtype(dtype)} [{sizes}, {', '.join(map(str, self.image_shape))}].\n"
                "  Export again, as the file and the artifact do not match."
            )

    def describe(self) -> str:
        """ExecuTorch's version and where it runs."""
        return f"{NAME} {version_of()} CPU"

    def close(self) -> None:
        """Frees the program."""
        self._method = self._program = None
        _loaded.discard(self)


def import_runtime() -> Any:
    """The module `executorch.runtime`.

    Raises:
        MissingPackage: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    try:
        with quiet():
            runtime = importlib.import_module(_MODULE)
            if not hasattr(runtime, "Runtime"):  # a folder of type stubs can be imported too
                raise EXECUTORCH.missing("ExecuTorch")
            runtime.Runtime.get()  # loads the native library
    except ModuleNotFoundError as error:
        if error.name not in (NAME, _MODULE):
            raise _broken(error) from error
        raise EXECUTORCH.missing("ExecuTorch") from error
    except (ImportError, OSError) as error:
        raise _broken(error) from error
    return runtime


def version_of() -> str:
    """ExecuTorch's version."""
    return version(NAME)


def _set_threads(n_threads: int | None) -> None:
    """Sets the number of threads of all programs, if none is loaded."""
    native: Any = importlib.import_module(f"{NAME}.extension.pybindings.portable_lib")
    present = native._threadpool_get_thread_count()
    if n_threads is not None and n_threads != present and len(_loaded) == 0:
        native._unsafe_reset_threadpool(n_threads)
        present = n_threads
    if n_threads not in (None, present):
        log.warning(
            "ExecuTorch runs on %d threads instead of %d: the programs of a process share their"
            " threads, and one is loaded already.",
            present, n_threads,
        )  # fmt: skip


def _described(method: Any) -> tuple[list[tuple[int, list[int]]], list[tuple[int, list[int]]]]:
    """Type and shape of a method's inputs and of its outputs."""
    if method is None:
        return [], []
    about = method.metadata
    takes = [about.input_tensor_meta(index) for index in range(about.num_inputs())]
    gives = [about.output_tensor_meta(index) for index in range(about.num_outputs())]
    return (
        [(one.dtype(), list(one.sizes())) for one in takes],
        [(one.dtype(), list(one.sizes())) for one in gives],
    )


def _broken(error: Exception) -> SetupError:
    return SetupError(
        f"executorch is installed, but cannot be imported: {error}.\n"
        "  It needs the torch that it was built for. Reinstall both with:"
        " pip install --force-reinstall executorch torch"
    )


def _explain(error: Exception, path: Path, what: str, lines: list[str]) -> KdedgeError:
    """The error for a program that cannot be loaded or run."""
    # The last lines say why it failed; those before are of the machine's processors
    reasons = [LOG_LINE.sub(b"", line.encode()).decode().strip() for line in lines[-_N_REASONS:]]
    text = " ".join(" ".join([str(error), *reasons]).split()).rstrip(".")
    problem = f"{path} cannot be {what} by executorch {version_of()}: {text[:300]}.\n"
    if is_out_of_memory(error):
        return ResourceError(f"{problem}  Use smaller batches, or close other programs.")
    return DataError(f"{problem}  Copy the file from the export again, or export again.")
