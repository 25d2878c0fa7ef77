"""TensorRT's packages on this machine: finding them, and how they get here."""

from __future__ import annotations

import importlib
import platform
from types import ModuleType

from kdedge.errors import SetupError
from kdedge.runtime.machine import is_jetson

EXPORT_FLAGS = {"tensorrt": "--trt", "tensorrt-rtx": "--trt-rtx"}
"""What `kdedge export` builds a target's engines with."""


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


def _broken(name: str, error: Exception) -> SetupError:
    reason = " ".join(str(error).split()).rstrip(".")
    remedy = "Install it once more; all its packages must be of one version."
    if name == "tensorrt" and is_jetson():
        remedy = tensorrt_install_hint(platform.system(), platform.machine(), jetson=True)
    return SetupError(f"{name} is installed and cannot be loaded: {reason}.\n  {remedy}")


def tensorrt_install_hint(system: str, machine: str, *, jetson: bool) -> str:
    """How TensorRT gets onto a machine.

    Args:
        system: as `platform.system()` gives it.
        machine: as `platform.machine()` gives it.
        jetson: whether it is a Jetson.
    """
    if jetson:
        return (
            "JetPack brings it: sudo apt-get install python3-libnvinfer\n"
            "  A virtual environment sees it where it was made with: python3 -m venv"
            " --system-site-packages\n"
            "  Never by pip: wheels for ARM servers have no code for Orin (SM 87)."
        )
    if system == "Linux" and machine == "aarch64":
        return "Install NVIDIA's package for this system: sudo apt-get install python3-libnvinfer"
    if system in ("Linux", "Windows"):
        return (
            "Install it with: pip install tensorrt\n  Its libraries come from NVIDIA's own index."
        )
    return f"It needs an NVIDIA GPU under Linux or Windows, and this is {system}."
