"""The Python packages of TensorRT and TensorRT for RTX: imports them, says how to install them."""

from __future__ import annotations

import functools
import importlib
import logging
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kdedge.errors import BackendUnavailable, MissingPackage, SetupError
from kdedge.runtime.machine import is_jetson

log = logging.getLogger(__name__)

_APT = "/usr/lib/python3"
_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")  # each has the module
_OLDEST = 10  # the first whose networks are strongly typed and have INT8's scales in half precision
_RTX_SYSTEMS = [(system, cpu) for system in ("Linux", "Windows") for cpu in ("x86_64", "amd64")]


def import_engine_package(name: str) -> ModuleType | None:
    """Imports `tensorrt` or `tensorrt_rtx`; None if it is not installed.

    Raises:
        SetupError: it is installed, but cannot be loaded.
    """
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return None
        raise _broken(name, error) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(name, error) from error
    # Type stubs alone leave a folder of that name, which Python imports as an empty namespace
    return module if hasattr(module, "__version__") else None


def engine_package(name: str) -> ModuleType:
    """Imports `tensorrt`, version 10 or later, or `tensorrt_rtx`.

    Raises:
        BackendUnavailable: it is not installed, or does not exist for this system.
        SetupError: it cannot be loaded, or is too old.
    """
    module = import_engine_package(name)
    if module is None and name == "tensorrt":
        raise BackendUnavailable(
            f"TensorRT engines need tensorrt, which is not installed.\n  {tensorrt_install_hint()}"
        )
    system, machine = platform.system(), platform.machine()
    if module is None and (system, machine.lower()) in _RTX_SYSTEMS:
        raise MissingPackage("tensorrt-rtx", extra="trt-rtx", purpose="TensorRT for RTX")
    if module is None:
        raise BackendUnavailable(
            f"TensorRT for RTX exists only for Linux and Windows on x86-64, but this is {system} on"
            f" {machine}.\n"
            "  On a Jetson, use --trt. For RTX GPUs, export on another machine."
        )
    if name == "tensorrt" and int(module.__version__.partition(".")[0]) < _OLDEST:
        raise SetupError(
            f"TensorRT {module.__version__} is too old; engines need TensorRT {_OLDEST} or later.\n"
            "  Install it. On a Jetson, JetPack 6.1 brings it."
        )
    return module


def short_version(module: ModuleType) -> str:
    """The package's version in three numbers, as in names of engine files."""
    return ".".join(module.__version__.split(".")[:3])


def _broken(name: str, error: Exception) -> SetupError:
    reason = " ".join(str(error).split()).rstrip(".")
    remedy = "Install it again; all its packages must have the same version."
    if name == "tensorrt" and is_jetson():
        remedy = tensorrt_install_hint()
    return SetupError(f"{name} is installed, but cannot be loaded: {reason}.\n  {remedy}")


def tensorrt_install_hint() -> str:
    """How to install TensorRT on this machine."""
    system = platform.system()
    if is_jetson():
        return (
            "Install JetPack's package: sudo apt-get install python3-libnvinfer\n"
            "  In a virtual environment, it is found only if that was made with:"
            " `python3 -m venv --system-site-packages`\n"
            "  Do not use pip: its wheels for ARM servers have no code for Orin (SM 87)."
        )
    if system == "Linux" and platform.machine() == "aarch64":
        return "Install NVIDIA's package for this system: sudo apt-get install python3-libnvinfer"
    if system in ("Linux", "Windows"):
        return (
            "Install it with: pip install tensorrt\n  Its libraries come from NVIDIA's own index."
        )
    return f"It needs an NVIDIA GPU and Linux or Windows, but this is {system}."


def jetson_wheel_problem() -> str | None:
    """Warns if this Jetson's TensorRT was installed by pip; None otherwise."""
    folder = _pip_folder(_TENSORRT) if is_jetson() else None
    if folder is None:
        return None
    return (
        f"tensorrt was installed by pip, in {folder}. On a Jetson its wheels may have no code for"
        " the GPU (SM 87). Uninstall it with pip, so that JetPack's TensorRT is found."
    )


def _pip_folder(names: Iterable[str]) -> Path | None:
    """Folder where pip installed one of these distributions; None if pip installed none."""
    for name in names:
        try:
            folder = Path(str(distribution(name).locate_file("")))
        except PackageNotFoundError:
            continue
        if not str(folder).startswith(_APT):
            return folder
    return None


def open_log(module: ModuleType) -> Any:
    """The logger whose `errors` are TensorRT's errors from now on, each in one line.

    It is the same for all engines and builders of a process. TensorRT warns by a second logger,
    while it holds a lock: if Python collects garbage in that call, and frees another engine, that
    waits for the lock forever.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
    """
    log_of_module = _shared(module)
    log_of_module.errors.clear()
    return log_of_module


@functools.cache
def _shared(module: ModuleType) -> Any:
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
            log.debug("%s: %s", module.__name__, text)
            if severity != levels.WARNING:
                self.errors.append(text)

    return Log()
