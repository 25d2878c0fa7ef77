"""What this machine is and has: a Jetson or not, a CUDA device, a package that loads."""

from __future__ import annotations

import ctypes
import importlib
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType

from kdedge.errors import SetupError

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_{MAJOR,MINOR}
_APT = "/usr/lib/python3"


@dataclass(frozen=True)
class CudaDevice:
    """The CUDA device that engines are built for: the first that this process may use.

    Attributes:
        name: such as "Orin".
        compute_capability: such as (8, 7).
    """

    name: str
    compute_capability: tuple[int, int]

    @property
    def capability(self) -> str:
        """The compute capability as text, such as "8.7"."""
        return "{}.{}".format(*self.compute_capability)


def find_cuda_device() -> CudaDevice:
    """Asks the driver for the first CUDA device.

    Raises:
        SetupError: there is no driver, or it has no device.
    """
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise SetupError(
            f"There is no NVIDIA driver here: {library} cannot be loaded.\n"
            "  In a container, start it with --gpus all, or --runtime nvidia on a Jetson."
        ) from error
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    for code in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    ):
        if code != 0:
            raise SetupError(
                f"The NVIDIA driver has no CUDA device for this process (error {code}).\n"
                "  `nvidia-smi` lists the devices; CUDA_VISIBLE_DEVICES may hide them."
            )
    return CudaDevice(name.value.decode(errors="replace"), (major.value, minor.value))


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
    return SetupError(
        f"{name} is installed and cannot be loaded: {error}.\n"
        "  Install it once more; all its packages must be of one version."
    )


def is_jetson(root: Path = Path("/")) -> bool:
    """Whether this is a Jetson.

    Args:
        root: the file system's root.
    """
    if (root / "etc/nv_tegra_release").is_file():
        return True
    for name in ("model", "compatible"):  # a container has no file of JetPack's
        try:
            text = (root / "proc/device-tree" / name).read_bytes()
        except OSError:
            continue
        if b"Jetson" in text or b"nvidia,tegra" in text:
            return True
    return False


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


def pip_installed(name: str) -> Path | None:
    """Where pip put a distribution; None where there is none, or apt installed it."""
    try:
        folder = Path(str(distribution(name).locate_file("")))
    except PackageNotFoundError:
        return None
    return None if str(folder).startswith(_APT) else folder
