"""CUDA through ctypes: finds GPUs, and has memory, copies and streams on the first GPU.

GPUs are found through the driver. Running an engine also needs the CUDA runtime library, which
TensorRT needs in any case.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import platform
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.errors import BackendUnavailable, SetupError

if TYPE_CHECKING:  # `kdedge doctor` uses this module, even if NumPy is broken
    import numpy.typing as npt

_RUNTIMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
# enum cudaMemcpyKind
_TO_DEVICE = 1
_FROM_DEVICE = 2
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE and cudaErrorNoDevice
# CU_DEVICE_ATTRIBUTE_...
_MULTIPROCESSORS = 16
_MAJOR = 75
_MINOR = 76


@dataclass(frozen=True)
class Gpu:
    """A GPU that CUDA programs can use.

    Attributes:
        name: the GPU's name, such as "Orin".
        compute_capability: major and minor version, such as "8.7".
        n_multiprocessors: distinguishes an Orin Nano from an AGX Orin of the same name.
        memory_bytes: total memory.
        bus_id: its place on the PCI bus, such as "0000:01:00.0".
    """

    name: str
    compute_capability: str
    n_multiprocessors: int
    memory_bytes: int
    bus_id: str


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that this process may use, from the NVIDIA driver; one or more.

    Raises:
        BackendUnavailable: there is no driver, or it has no GPU for this process.
        SetupError: the driver fails.
    """
    library = "nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        raise BackendUnavailable(
            f"There is no NVIDIA driver on this machine: {library} cannot be loaded.\n"
            "  In a container, start it with `--gpus all`, or `--runtime nvidia` on a Jetson."
        ) from error
    n_gpus = c_int()
    _check_driver(driver.cuInit(0))
    _check_driver(driver.cuDeviceGetCount(byref(n_gpus)))
    if not n_gpus.value:
        _check_driver(_NO_DEVICE)
    return tuple(_describe_gpu(driver, ordinal) for ordinal in range(n_gpus.value))


def find_gpu() -> Gpu:
    """The first GPU, on which engines are built and run; raises the errors of `find_gpus`."""
    return find_gpus()[0]


def _describe_gpu(driver: Any, ordinal: int) -> Gpu:
    gpu = c_int()
    value = c_int()
    memory = c_size_t()
    name = ctypes.create_string_buffer(256)
    bus_id = ctypes.create_string_buffer(32)
    _check_driver(driver.cuDeviceGet(byref(gpu), ordinal))
    _check_driver(driver.cuDeviceGetName(name, len(name), gpu))
    _check_driver(driver.cuDeviceTotalMem_v2(byref(memory), gpu))
    _check_driver(driver.cuDeviceGetPCIBusId(bus_id, len(bus_id), gpu))
    attributes = []
    for attribute in (_MAJOR, _MINOR, _MULTIPROCESSORS):
        _check_driver(driver.cuDeviceGetAttribute(byref(value), attribute, gpu))
        attributes.append(value.value)
    major, minor, n_multiprocessors = attributes
    text = name.value.decode(errors="replace")
    place = bus_id.value.decode(errors="replace")
    return Gpu(text, f"{major}.{minor}", n_multiprocessors, memory.value, place)


def _check_driver(code: int) -> None:
    """Raises the error for a code that a function of the driver returned."""
    if code == _NO_DEVICE:
        raise BackendUnavailable(
            "The NVIDIA driver has no GPU for this process.\n"
            "  `nvidia-smi` lists the GPUs; CUDA_VISIBLE_DEVICES may hide them."
        )
    if code:
        raise SetupError(
            f"The NVIDIA driver fails with error {code}.\n"
            "  `nvidia-smi` shows driver and GPU; a driver that is too old has to be updated."
        )


def open_cuda() -> Cuda:
    """Opens the CUDA runtime library on the first GPU.

    Raises:
        BackendUnavailable: there is no NVIDIA driver, or no GPU.
        SetupError: there is no such library, or it cannot use the GPU.
    """
    gpu = find_gpu()
    problem: SetupError | None = None
    for name in _runtime_libraries():
        try:
            cuda = Cuda(ctypes.CDLL(name), gpu)
        except OSError:
            continue
        # A library that is newer than the driver fails here; the next one may be older
        try:
            with cuda.first_gpu():
                return cuda
        except SetupError as error:
            problem = problem or error
    raise problem or SetupError(
        "The CUDA runtime library (libcudart), which TensorRT needs, is not found.\n"
        "  Install it with: pip install nvidia-cuda-runtime-cu12 (for TensorRT built for CUDA 12)"
    )


def _runtime_libraries() -> Iterator[str]:
    """Names and paths to try: the system's libraries, NVIDIA's Python packages, /usr/local/cuda."""
    yield from _RUNTIMES
    spec = importlib.util.find_spec("nvidia")  # in the environment, or the user's own packages
    for packages in [] if spec is None else spec.submodule_search_locations or []:
        for folder in ("cu13/lib", "cuda_runtime/lib"):
            yield from sorted(map(str, (Path(packages) / folder).glob("libcudart.so.*")))
    yield from ("/usr/local/cuda/lib64/libcudart.so", "/usr/local/cuda/lib/libcudart.so")


class Cuda:
    """Calls of the CUDA runtime; a failing call raises `SetupError` with CUDA's own reason.

    Args:
        library: libcudart.
        gpu: the first GPU, on which the calls work.
    """

    def __init__(self, library: Any, gpu: Gpu) -> None:
        self.gpu = gpu
        self._library = library
        library.cudaGetErrorString.restype = c_char_p
        library.cudaGetErrorString.argtypes = [c_int]
        library.cudaMalloc.argtypes = [c_void_p, c_size_t]
        library.cudaFree.argtypes = [c_void_p]
        library.cudaMemcpyAsync.argtypes = [c_void_p, c_void_p, c_size_t, c_int, c_void_p]
        library.cudaStreamCreate.argtypes = [c_void_p]
        library.cudaStreamSynchronize.argtypes = [c_void_p]
        library.cudaStreamDestroy.argtypes = [c_void_p]
        library.cudaEventCreate.argtypes = [c_void_p]
        library.cudaEventRecord.argtypes = [c_void_p, c_void_p]
        library.cudaEventElapsedTime.argtypes = [c_void_p, c_void_p, c_void_p]
        library.cudaEventDestroy.argtypes = [c_void_p]

    @contextlib.contextmanager
    def first_gpu(self) -> Iterator[None]:
        """Context in which the first GPU is this thread's current one; torch may use another."""
        before = c_int()
        self._call("cudaGetDevice", byref(before))
        self._call("cudaSetDevice", 0)
        try:
            yield
        finally:
            self._library.cudaSetDevice(before.value)

    def allocate(self, n_bytes: int) -> int:
        """Allocates GPU memory and returns its address."""
        address = c_void_p()
        self._call("cudaMalloc", byref(address), n_bytes)
        return address.value or 0

    def free(self, address: int) -> None:
        """Frees GPU memory."""
        self._call("cudaFree", address)

    def new_stream(self) -> int:
        """Creates a stream and returns its handle."""
        stream = c_void_p()
        self._call("cudaStreamCreate", byref(stream))
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream."""
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Starts copying a contiguous array to the GPU."""
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def copy_from_device(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Starts copying from the GPU to a contiguous array; complete after `synchronize`."""
        assert array.flags.c_contiguous
        assert array.flags.writeable
        self._call(
            "cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, _FROM_DEVICE, stream
        )

    def synchronize(self, stream: int) -> None:
        """Waits until the stream is finished."""
        self._call("cudaStreamSynchronize", stream)

    def elapsed_ms(self, work: Callable[[], None], stream: int) -> float:
        """GPU time in ms of all operations that `work` adds to the stream, measured by events."""
        events: list[c_void_p] = []
        try:
            for _ in range(2):
                event = c_void_p()
                self._call("cudaEventCreate", byref(event))
                events.append(event)
            self._call("cudaEventRecord", events[0], stream)
            work()
            self._call("cudaEventRecord", events[1], stream)
            self.synchronize(stream)
            elapsed = c_float()
            self._call("cudaEventElapsedTime", byref(elapsed), events[0], events[1])
        finally:
            for event in events:
                self._library.cudaEventDestroy(event)
        return float(elapsed.value)

    def _call(self, function: str, *arguments: Any) -> None:
        if code := getattr(self._library, function)(*arguments):
            reason = self._library.cudaGetErrorString(code)
            text = reason.decode(errors="replace") if reason else "unknown error"
            raise SetupError(
                f"CUDA: {function} failed with error {code}, {text}.\n"
                "  `nvidia-smi` shows driver and GPU; a driver that is too old has to be updated."
            )
