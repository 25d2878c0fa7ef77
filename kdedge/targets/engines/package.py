"""The Python packages of TensorRT and TensorRT for RTX."""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdedge.errors import SetupError
from kdedge.packages import Package
from kdedge.runtime.machine import is_jetson

log = logging.getLogger(__name__)

_APT = "/usr/lib/python3"
_OLDEST = 10  # first version with strongly typed networks whose INT8 scales are half precision


def engine_package(package: Package) -> ModuleType:
    """Imports `tensorrt`, version 10 or later, or `tensorrt_rtx`.

    Raises:
        BackendUnavailable, MissingPackage: the package is not installed.
        SetupError: the package cannot be loaded, or is too old.
    """
    module: ModuleType = package.load()
    if package.module == "tensorrt" and int(module.__version__.partition(".")[0]) < _OLDEST:
        raise SetupError(
            f"TensorRT {module.__version__} is too old; engines need TensorRT {_OLDEST} or later.\n"
            "  Install it. On a Jetson, JetPack 6.1 brings it."
        )
    return module


def short_version(module: ModuleType) -> str:
    """The first three numbers of the package's version, as in names of engine files."""
    return ".".join(module.__version__.split(".")[:3])


def jetson_wheel_problem() -> str | None:
    """The warning if this is a Jetson whose TensorRT was installed by pip; else None."""
    spec = find_spec("tensorrt") if is_jetson() else None
    if spec is None or spec.origin is None or spec.origin.startswith(_APT):
        return None
    return (
        f"tensorrt was installed by pip, in {Path(spec.origin).parents[1]}. On a Jetson its wheels"
        " may have no code for the GPU (SM 87). Uninstall it with pip, so that JetPack's TensorRT"
        " is found."
    )


def open_log(module: ModuleType) -> Any:
    """The logger for TensorRT; its `errors` collect TensorRT's errors from now on, one line each.

    All engines and builders of a process share it, since TensorRT warns about a second logger while
    it holds a lock. If Python's garbage collector frees another engine during that call, it waits
    for the lock forever.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
    """
    logger = _shared_logger(module)
    logger.errors.clear()
    return logger


@functools.cache
def _shared_logger(module: ModuleType) -> Any:
    """The only logger of a process for a package; see `open_log`."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            levels = trt.ILogger.Severity
            if severity not in (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING):
                return
            text = " ".join(msg.split())
            log.debug(f"{module.__name__}: {text}")
            if severity != levels.WARNING:
                self.errors.append(text)

    return Log()
