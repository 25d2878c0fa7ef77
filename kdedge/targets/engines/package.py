"""The Python packages of TensorRT and TensorRT for RTX: imports them, says how to install them."""

from __future__ import annotations

import importlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from kdedge.errors import SetupError
from kdedge.runtime.machine import is_jetson

_APT = "/usr/lib/python3"
_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")  # each has the module


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
            "  In a virtual environment, it is found only if that was made with: python3 -m venv"
            " --system-site-packages\n"
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
