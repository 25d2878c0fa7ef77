"""What this machine is and has: a Jetson or not, a CUDA device, a package that loads."""

from __future__ import annotations

import ctypes
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from kdedge.errors import SetupError
from kdedge.runtime.machine import is_jetson

# CU_DEVICE_ATTRIBUTE_...
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_APT = "/usr/lib/python3"
_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")  # each brings the module


@dataclass(frozen=True)
class CudaDevice:
    """The CUDA device that engines are built for: the first that this process may use.

    Attributes:
        name: such as "Orin".
        compute_capability: such as (8, 7).
        n_multiprocessors: what tells an Orin Nano from an AGX Orin, which have the same name.
    """

    name: str
    compute_capability: tuple[int, int]
    n_multiprocessors: int

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
    device, major, minor, count = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    for code in (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(count), _MULTIPROCESSOR_COUNT, device),
    ):
        if code != 0:
            raise SetupError(
                f"The NVIDIA driver has no CUDA device for this process (error {code}).\n"
                "  `nvidia-smi` lists the devices; CUDA_VISIBLE_DEVICES may hide them."
            )
    return CudaDevice(name.value.decode(errors="replace"), (major.value, minor.value), count.value)


def pip_installed(name: str) -> Path | None:
    """Where pip put a distribution; None where there is none, or apt installed it."""
    try:
        folder = Path(str(distribution(name).locate_file("")))
    except PackageNotFoundError:
        return None
    return None if str(folder).startswith(_APT) else folder


def jetson_wheel_problem() -> str | None:
    """Says that this Jetson has a TensorRT of pip's; None where it has not, or is no Jetson."""
    found = filter(None, map(pip_installed, _TENSORRT)) if is_jetson() else iter(())
    folder = next(found, None)
    if folder is None:
        return None
    return (
        f"tensorrt was installed by pip, in {folder}. On a Jetson its wheels may have no code for"
        " the GPU (SM 87): uninstall it there, and JetPack's is found."
    )
