"""Runs ONNX files on the CPU with ONNX Runtime, on any machine."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdedge.errors import KdedgeError, SetupError
from kdedge.runtime.artifact import INPUT_NAME, Pixels
from kdedge.runtime.native_lines import lines_held
from kdedge.runtime.threads import may_spin, number_of_threads
from kdedge.targets.cpu_backend import explained, import_runtime
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

_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")

# Where in ONNX Runtime's source an error was raised, with the function's whole signature.
_SOURCE_LINE = re.compile(r"/\S+:\d+ .*\) ")


def check_environment() -> None:
    """Checks for ONNX Runtime.

    Raises:
        MissingPackage: it is not installed.
        SetupError: it is installed, but cannot be imported.
    """
    _import()


def _has_fixed_ranges(path: Path) -> bool:
    """Whether a file has Q/DQ: a node's field `op_type` (number 4) with that text of 14 bytes.

    A file that cannot be read has none: its error is ONNX Runtime's.
    """
    try:
        return b'"\x0eQuantizeLinear' in path.read_bytes()
    except OSError:
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
    return open_session(OnnxSession, path, n_threads)


_Session = TypeVar("_Session", bound="Session")


def open_session(kind: type[_Session], path: Path, n_threads: int | None) -> _Session:
    """Loads an ONNX file as a kind of session; see `load`."""
    ort = _import()
    options = ort.SessionOptions()
    options.log_severity_level = (
        _FATAL  # failures are exceptions, and warnings do not help the user
    )
    options.intra_op_num_threads = n_threads or number_of_threads() or 0
    if _has_fixed_ranges(path):
        # Else processors without VNNI add two products of bytes in 16 bits, and saturate
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not may_spin():
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # After a call, spinning threads would take cores from the preparation of the next one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        with contextlib.redirect_stdout(None):  # it prints there before it tries again
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return kind(session, path, ort)
    except _errors(ort) as error:
        raise _explain(error, path, ort.__version__, "loaded") from error


class Session:
    """ONNX Runtime's session: calls have explained errors.

    Args:
        session: ONNX Runtime's session.
        path: the file, for messages.
        ort: the module `onnxruntime`.
    """

    def __init__(self, session: Any, path: Path, ort: Any) -> None:
        self._session, self._path, self._ort, self._version = session, path, ort, ort.__version__
        self._errors = _errors(ort)

    def call(self, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
        """Computes outputs.

        Raises:
            DataError: the graph does not take these inputs, or fails.
            ResourceError: memory ran out.
        """
        try:
            found: list[Any] = self._session.run(outputs, feeds)
        except self._errors as error:
            raise _explain(error, self._path, self._version, "run") from error
        return found

    def describe(self) -> str:
        """ONNX Runtime's version and where it runs."""
        return f"{NAME} {self._version} CPU"

    def close(self) -> None:
        """Frees the session."""
        self._session = None


class OnnxSession(Session):
    """A loaded ONNX file."""

    name = NAME

    def __init__(self, session: Any, path: Path, ort: Any) -> None:
        super().__init__(session, path, ort)
        (takes, *_), (gives, *_) = session.get_inputs(), session.get_outputs()
        sizes = [size if isinstance(size, int) else None for size in takes.shape]
        n_images, *image_shape = sizes
        self.batches = (1, None) if n_images is None else (n_images, n_images)
        self.pixels = _PIXELS[takes.type]
        self.image_shape = tuple(image_shape)
        self._output = gives.name

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C], or features [B, D]; see `Backend.run` and `call`."""
        (outputs,) = self.call([self._output], {INPUT_NAME: images})
        return np.asarray(outputs, dtype=np.float32)


def _import() -> Any:
    loaded = sys.modules.get(NAME)  # an import that is held up again would open a file
    quietly = contextlib.nullcontext if loaded else functools.partial(lines_held, _DEVICE_DISCOVERY)
    purpose = "Running ONNX files"
    return import_runtime(ONNX_RUNTIME, "InferenceSession", purpose=purpose, quietly=quietly)


def _errors(ort: Any) -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which have no common base class, and pybind's.

    Text in the file that is not UTF-8 raises UnicodeDecodeError, a wrong size ValueError.
    """
    state = importlib.import_module(f"{ort.__name__}.capi.onnxruntime_pybind11_state")
    names = (
        *("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile"),
        *("NotImplemented", "RuntimeException", "NoModel", "EPFail"),
    )
    return (
        *(getattr(state, name) for name in names if hasattr(state, name)),
        RuntimeError,
        ValueError,
    )


def _explain(error: Exception, path: Path, version: str, what: str) -> KdedgeError:
    """The error for a file that cannot be loaded or run."""
    text = " ".join(str(error).split()).rstrip(".")
    reason = _SOURCE_LINE.sub("", text)[:300]
    if any(sign in text for sign in _TOO_NEW):
        return SetupError(
            f"onnxruntime {version} is too old for {path}: {reason}.\n"
            "  Update it with: pip install --upgrade onnxruntime"
        )
    is_memory = any(sign in text for sign in _NO_MEMORY)
    return explained(reason, path, what, f"onnxruntime {version}", is_memory=is_memory)
