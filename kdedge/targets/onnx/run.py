"""Runs ONNX files on the CPU with ONNX Runtime, on any machine."""

from __future__ import annotations

import contextlib
import functools
import importlib
import mmap
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import SetupError
from kdedge.runtime.artifact import INPUT_NAME, Pixels
from kdedge.runtime.native_lines import lines_held
from kdedge.runtime.threads import may_spin, number_of_threads
from kdedge.targets.cpu_backend import CpuModel, explaining
from kdedge.targets.onnx import ONNX_RUNTIME

NAME = "onnxruntime"

_FATAL = 4
_PIXELS: dict[str, Pixels] = {"tensor(float)": "float", "tensor(uint8)": "uint8"}
# A newer opset or operator than this ONNX Runtime knows; other failures are the file's own.
_TOO_NEW = ("NOT_IMPLEMENTED", "is under development", "Unsupported model IR version")

# Importing ONNX Runtime 1.23 and later warns on machines whose graphics card it does not know (a
# Raspberry Pi, WSL, a server's console), and no setting turns that off:
# github.com/microsoft/onnxruntime/issues/27092
_DEVICE_DISCOVERY = re.compile(rb"device_discovery\.cc")


def check_environment() -> None:
    """Checks for ONNX Runtime.

    Raises:
        MissingPackage: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    _import()


def _has_fixed_ranges(path: Path) -> bool:
    """Whether a file has Q/DQ: a node's field `op_type` (number 4) with that text of 14 bytes.

    A file that is empty or cannot be read has none: its error is ONNX Runtime's.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data.find(b'"\x0eQuantizeLinear') >= 0
    except (OSError, ValueError):
        return False


def load(
    path: Path, *, n_threads: int | None = None, built_with: Mapping[str, Any] | None = None
) -> OnnxSession:
    """Loads an ONNX file, and its external data from the same folder.

    Args:
        path: the file.
        n_threads: threads per operator; None: the number in OMP_NUM_THREADS, or else one per
            physical core.
        built_with: not used.

    Raises:
        MissingPackage: ONNX Runtime is not installed.
        SetupError: ONNX Runtime is too old for the file.
        DataError: the file is broken.
    """
    del built_with
    return OnnxSession(open_session(path, n_threads), path)


def open_session(path: Path, n_threads: int | None) -> Any:
    """Loads an ONNX file as a session of ONNX Runtime; see `load`."""
    ort = _import()
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL  # failures are exceptions; warnings do not help the user
    options.intra_op_num_threads = n_threads or number_of_threads() or 0
    if _has_fixed_ranges(path):
        # Else processors without VNNI add two products of bytes in 16 bits, and saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not may_spin():
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # After a call, spinning threads would take cores from the preparation of the next one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    with _explaining(path, "loaded"), contextlib.redirect_stdout(None):  # before it tries again
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Session(CpuModel):
    """ONNX Runtime's session. Calls of several threads run at once.

    Args:
        session: ONNX Runtime's.
        path: the file, for messages.
        shape: what the session knows of the file's input, as `CpuModel` takes it.
    """

    def __init__(self, session: Any, path: Path, **shape: Any) -> None:
        super().__init__(path, f"{NAME} {_import().__version__}", **shape)
        self._session, self._running = session, contextlib.nullcontext()

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        return _explaining(self._path, "run")

    def close(self) -> None:
        """Frees the session."""
        self._session = None


class OnnxSession(Session):
    """A loaded ONNX file."""

    name = NAME

    def __init__(self, session: Any, path: Path) -> None:
        (takes, *_), (gives, *_) = session.get_inputs(), session.get_outputs()
        n_images, *image_shape = (size if isinstance(size, int) else None for size in takes.shape)
        super().__init__(
            session,
            path,
            batches=(1, None) if n_images is None else (n_images, n_images),
            pixels=_PIXELS[takes.type],
            image_shape=tuple(image_shape),
        )
        self._output = gives.name

    def _compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        (outputs,) = self._session.run([self._output], {INPUT_NAME: images})
        return np.asarray(outputs, dtype=np.float32)


def _import() -> Any:
    loaded = sys.modules.get(NAME)  # an import that is held up again would open a file
    quietly = contextlib.nullcontext if loaded else functools.partial(lines_held, _DEVICE_DISCOVERY)
    return ONNX_RUNTIME.load("InferenceSession", purpose="Running ONNX files", quietly=quietly)


@contextlib.contextmanager
def _explaining(path: Path, what: str) -> Iterator[None]:
    """Context in which errors of ONNX Runtime are explained.

    Its own exceptions have no common base class. Text in the file that is not UTF-8 raises
    UnicodeDecodeError, a wrong size ValueError.

    Raises:
        SetupError: ONNX Runtime is too old for the file.
        DataError, ResourceError: as of `explaining`.
    """
    ort = _import()
    state = importlib.import_module(f"{ort.__name__}.capi.onnxruntime_pybind11_state")
    found = (x for x in vars(state).values() if isinstance(x, type) and issubclass(x, Exception))
    kinds: tuple[type[Exception], ...] = (*found, RuntimeError, ValueError)
    with explaining(path, what, f"{NAME} {ort.__version__}", errors=kinds):
        try:
            yield
        except kinds as error:
            if not any(sign in str(error) for sign in _TOO_NEW):
                raise
            raise SetupError(
                f"onnxruntime {ort.__version__} is too old for {path}: {error}.\n"
                "  Update it with: pip install --upgrade onnxruntime"
            ) from error
