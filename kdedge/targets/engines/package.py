"""The Python packages of TensorRT and TensorRT for RTX: finding them, and how they get here."""

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
_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")  # each brings the module


def import_engine_package(name: str) -> ModuleType | None:
    """Imports `tensorrt` or `tensorrt_rtx`; None where it is not installed.

    Raises:
        SetupError: it is installed and cannot be loaded.
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
    """The package's version in three numbers, as engine files carry it."""
    return ".".join(module.__version__.split(".")[:3])


def _broken(name: str, error: Exception) -> SetupError:
    reason = " ".join(str(error).split()).rstrip(".")
    remedy = "Install it once more; all its packages must be of one version."
    if name == "tensorrt" and is_jetson():
        remedy = tensorrt_install_hint()
    return SetupError(f"{name} is installed and cannot be loaded: {reason}.\n  {remedy}")


def tensorrt_install_hint() -> str:
    """How TensorRT gets onto this machine."""
    system = platform.system()
    if is_jetson():
        return (
            "JetPack brings it: sudo apt-get install python3-libnvinfer\n"
            "  A virtual environment sees it where it was made with: python3 -m venv"
            " --system-site-packages\n"
            "  Never by pip: wheels for ARM servers have no code for Orin (SM 87)."
        )
    if system == "Linux" and platform.machine() == "aarch64":
        return "Install NVIDIA's package for this system: sudo apt-get install python3-libnvinfer"
    if system in ("Linux", "Windows"):
        return (
            "Install it with: pip install tensorrt\n  Its libraries come from NVIDIA's own index."
        )
    return f"It needs an NVIDIA GPU under Linux or Windows, and this is {system}."


def jetson_wheel_problem() -> str | None:
    """Says that this Jetson's TensorRT is pip's; None otherwise, and on other machines."""
    folder = _pip_folder(_TENSORRT) if is_jetson() else None
    if folder is None:
        return None
    return (
        f"tensorrt was installed by pip, in {folder}. On a Jetson its wheels may have no code for"
        " the GPU (SM 87): uninstall it there, and JetPack's is found."
    )


def _pip_folder(names: Iterable[str]) -> Path | None:
    """Where pip put one of these distributions; None without any, or where apt installed it."""
    for name in names:
        try:
            folder = Path(str(distribution(name).locate_file("")))
        except PackageNotFoundError:
            continue
        if not str(folder).startswith(_APT):
            return folder
    return None
