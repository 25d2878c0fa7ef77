"""The CUDA runtime library through ctypes: memory, copies and one stream on the first GPU.

TensorRT needs libcudart in any case, so that this asks for nothing that is not there already.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sysconfig
from collections.abc import Callable, Iterator
from ctypes import byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy.typing as npt

from kdedge.errors import SetupError
from kdedge.runtime.backends._protocol import NotHere

_DRIVER = "libcuda.so.1"
_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")
_TO_DEVICE, _FROM_DEVICE = 1, 2  # enum cudaMemcpyKind
_NO_DEVICE = 100  # cudaErrorNoDevice
_MAJOR, _MINOR = 75, 76  # cudaDevAttrComputeCapabilityMajor, -Minor
_MULTIPROCESSORS = 16  # cudaDevAttrMultiProcessorCount


def open_cuda() -> Cuda:
    """Opens the CUDA runtime library and looks for the GPU.

    Raises:
        NotHere: there is no NVIDIA driver, or no GPU.
        SetupError: there is no such library, or it cannot use the GPU.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise NotHere(
            f"There is no NVIDIA driver here: {_DRIVER} cannot be loaded ({error}).\n"
            "  TensorRT engines need an NVIDIA GPU with its driver; in a container, start it with"
            " the GPU (docker run --gpus all).\n"
            "  Without a GPU, run the ONNX file: --backend onnxruntime"
        ) from error
    problem: SetupError | None = None
    for name in _candidates():
        try:
            cuda = Cuda(ctypes.CDLL(name))
        except OSError:
            continue
        # A library that is newer than the driver says so here; an older one may be there too
        try:
            cuda.check_device()
        except SetupError as error:
            problem = problem or error
        else:
            return cuda
    raise problem or SetupError(
        "The CUDA runtime library (libcudart) is not found, which TensorRT needs.\n"
        "  Install it with: pip install nvidia-cuda-runtime-cu12 (for TensorRT built for CUDA 12)"
    )


def count_multiprocessors() -> int | None:
    """The first GPU's size; None where there is none that can be asked."""
    try:
        return open_cuda().n_multiprocessors()
    except SetupError:
        return None


def _candidates() -> Iterator[str]:
    """Names and paths to try: the system's first, then those of NVIDIA's Python packages."""
    yield from _NAMES
    packages = Path(sysconfig.get_path("platlib")) / "nvidia"
    for folder in ("cu13/lib", "cuda_runtime/lib"):
        yield from (str(path) for path in sorted((packages / folder).glob("libcudart.so.*")))
    yield from ("/usr/local/cuda/lib64/libcudart.so", "/usr/local/cuda/lib/libcudart.so")
    found = ctypes.util.find_library("cudart")
    if found is not None:
        yield found


class Cuda:
    """Calls of the CUDA runtime; each that fails raises `SetupError` with CUDA's own reason.

    Args:
        library: libcudart.
    """

    def __init__(self, library: Any) -> None:
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

    def check_device(self) -> None:
        """Looks for a GPU that this library can use."""
        n_devices = c_int()
        code = self._library.cudaGetDeviceCount(byref(n_devices))
        if code == _NO_DEVICE or (not code and not n_devices.value):
            raise NotHere("CUDA sees no GPU.\n  Is it hidden by CUDA_VISIBLE_DEVICES?")
        self._check("cudaGetDeviceCount", code)
        self._call("cudaSetDevice", 0)

    def compute_capability(self) -> str:
        """The GPU's compute capability, as in `8.7`."""
        return f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}"

    def n_multiprocessors(self) -> int:
        """The GPU's size, which tells an Orin Nano from an AGX Orin."""
        return self._attribute(_MULTIPROCESSORS)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cudaDeviceGetAttribute", byref(value), number, 0)
        return value.value

    def allocate(self, n_bytes: int) -> int:
        """Reserves memory of the GPU and gives its address."""
        address = c_void_p()
        self._call("cudaMalloc", byref(address), n_bytes)
        return address.value or 0

    def free(self, address: int) -> None:
        """Gives memory back."""
        self._call("cudaFree", address)

    def new_stream(self) -> int:
        """Creates a stream and gives its handle."""
        stream = c_void_p()
        self._call("cudaStreamCreate", byref(stream))
        return stream.value or 0

    def destroy_stream(self, stream: int) -> None:
        """Destroys a stream."""
        self._call("cudaStreamDestroy", stream)

    def copy_to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Starts to copy a contiguous array to the GPU."""
        self._call("cudaMemcpyAsync", address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def copy_from_device(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Starts to fill a contiguous array from the GPU; it is whole after `synchronize`."""
        assert array.flags.c_contiguous
        assert array.flags.writeable
        self._call(
            "cudaMemcpyAsync", array.ctypes.data, address, array.nbytes, _FROM_DEVICE, stream
        )

    def synchronize(self, stream: int) -> None:
        """Waits until the stream has done everything."""
        self._call("cudaStreamSynchronize", stream)

    def elapsed_ms(self, work: Callable[[], None], stream: int) -> float:
        """Time that the GPU takes for what `work` puts on the stream, by events around it."""
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
            taken = c_float()
            self._call("cudaEventElapsedTime", byref(taken), events[0], events[1])
        finally:
            for event in events:
                self._library.cudaEventDestroy(event)
        return float(taken.value)

    def _call(self, function: str, *arguments: Any) -> None:
        self._check(function, getattr(self._library, function)(*arguments))

    def _check(self, function: str, code: int) -> None:
        if code:
            reason = self._library.cudaGetErrorString(code)
            text = reason.decode(errors="replace") if reason else "unknown error"
            raise SetupError(
                f"CUDA: {function} failed with error {code}, {text}.\n"
                "  `nvidia-smi` shows driver and GPU; a driver that is too old has to be updated."
            )
