"""A GPU and a TensorRT made of host memory."""

from __future__ import annotations

import ctypes
import enum
import time
import weakref
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

N_CLASSES = 4


class Function:
    """A C function: may be called and given argument types."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class HostCudart:
    """A driver and a libcudart with one GPU, an Orin, whose memory is host memory.

    Attributes:
        allocated: sizes in bytes by address.
        memory_bytes: the size of its memory.
        n_gpus: how many the driver counts.
        current: number of the GPU that the thread uses; streams and buffers are the first one's.
        streams: those that were created and not destroyed.
        events: the host's time in ms at which each was recorded, by handle.
        fails: the functions that fail, and with which code.
    """

    def __init__(self) -> None:
        self.allocated: dict[int, int] = {}
        self.memory_bytes = 1 << 30
        self.n_gpus = 1
        self.current = 0
        self.streams: set[int] = set()
        self.events: dict[int, float] = {}
        self.fails: dict[str, int] = {}
        self._kept: dict[int, Any] = {}
        for name in (
            *("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"),
            *("cuDeviceTotalMem_v2", "cuDeviceGetAttribute", "cuDeviceGetPCIBusId"),
            *("cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaStreamCreate"),
            *("cudaStreamSynchronize", "cudaStreamDestroy", "cudaGetErrorString"),
            *("cudaGetDevice", "cudaSetDevice"),
            *("cudaEventCreate", "cudaEventRecord", "cudaEventElapsedTime", "cudaEventDestroy"),
        ):
            setattr(self, name, Function(self._guarded(name)))

    def _guarded(self, name: str) -> Any:
        call = getattr(self, f"_{name}", lambda *_: 0)
        return lambda *arguments: self.fails[name] if name in self.fails else call(*arguments)

    def _cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.n_gpus
        return 0

    def _cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = b"Orin"
        return 0

    def _cuDeviceGetPCIBusId(self, bus_id: Any, size: int, device: Any) -> int:
        bus_id.value = b"0000:65:00.0"
        return 0

    def _cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = self.memory_bytes
        return 0

    def _cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7, 16: 8}[attribute]
        return 0

    def _cudaGetErrorString(self, code: int) -> bytes:
        return b"out of memory"

    def _cudaGetDevice(self, device: Any) -> int:
        device._obj.value = self.current
        return 0

    def _cudaSetDevice(self, device: int) -> int:
        self.current = device
        return 0

    def _cudaStreamCreate(self, stream: Any) -> int:
        stream._obj.value = 77
        self.streams.add(77)
        return 0

    def _cudaStreamDestroy(self, stream: int) -> int:
        self.streams.remove(stream)
        return 0

    def _cudaEventCreate(self, event: Any) -> int:
        event._obj.value = 1000 + len(self.events)
        self.events[event._obj.value] = 0.0
        return 0

    def _cudaEventRecord(self, event: Any, stream: int) -> int:
        assert stream in self.streams
        self.events[event.value] = 1000 * time.perf_counter()
        return 0

    def _cudaEventElapsedTime(self, taken: Any, began: Any, ended: Any) -> int:
        taken._obj.value = self.events[ended.value] - self.events[began.value]
        return 0

    def _cudaEventDestroy(self, event: Any) -> int:
        del self.events[event.value]
        return 0

    def _cudaMalloc(self, pointer: Any, n_bytes: int) -> int:
        if sum(self.allocated.values()) + n_bytes > self.memory_bytes:
            return 2
        memory = ctypes.create_string_buffer(n_bytes)
        address = ctypes.addressof(memory)
        self._kept[address], self.allocated[address] = memory, n_bytes
        pointer._obj.value = address
        return 0

    def _cudaFree(self, address: int) -> int:
        del self._kept[address], self.allocated[address]
        return 0

    def _cudaMemcpyAsync(self, to: int, source: int, n_bytes: int, kind: int, stream: int) -> int:
        assert self.current == 0
        on_device = to if kind == 1 else source
        assert n_bytes <= self.allocated[on_device]
        ctypes.memmove(to, source, n_bytes)
        return 0


class Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class HostTensorRT:
    """A TensorRT whose engine sums up each image's channels; the engine file is its settings.

    The file holds the lowest and highest batch, the input's type, the output's name, and the side
    of the images where it is not 2. An engine whose batches differ has a second profile, for the
    lowest.

    Attributes:
        room_for: how many engines fit the GPU's memory.
    """

    __version__ = "10.3.0"
    room_for = 1000
    TensorIOMode = Mode

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

        def __init__(self) -> None:
            pass

    class Runtime:
        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            if not data.startswith(b"engine "):
                self._log.log(2, "a warning")
                self._log.log(1, "Serialization assertion\n failed.")
                return None
            if len(HostEngine.alive) >= HostTensorRT.room_for:
                self._log.log(1, "out of memory")
                return None
            low, high, kind, output, side = [*data.decode().split()[1:], "2"][:5]
            return HostEngine(int(low), int(high), kind, output, int(side))


class HostEngine:
    num_io_tensors = 2
    alive: ClassVar[weakref.WeakSet[HostEngine]] = weakref.WeakSet()

    def __init__(self, low: int, high: int, kind: str, output: str, side: int) -> None:
        self.low, self.high, self.kind, self.output = low, high, kind, output
        self.image_shape = (3, side, side)
        self.num_optimization_profiles = 1 if low == high else 2
        self.alive.add(self)

    def get_tensor_name(self, index: int) -> str:
        return ("images", self.output)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "images" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.kind if name == "images" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first = self.low if self.low == self.high else -1
        return (first, *self.image_shape) if name == "images" else (first, N_CLASSES)

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return [(n, *self.image_shape) for n in (self.low, self.high, self.high)]

    def create_execution_context(self) -> Any:
        return HostContext(self)

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda kind: '{"Layers": []}')


class HostContext:
    def __init__(self, engine: HostEngine) -> None:
        self._engine, self._addresses, self._shape = engine, {}, ()
        self._profile = 0
        self.profiles_used: list[int] = []

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream == 77
        self._profile, self._shape = profile, ()
        return profile < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        highest = self._engine.low if self._profile else self._engine.high
        return shape[1:] == self._engine.image_shape and shape[0] <= highest

    @staticmethod
    def compute(images: np.ndarray) -> np.ndarray:
        """[B, 3, S, S] -> logits [B, N_CLASSES], float32."""
        sums = images.sum(axis=(2, 3))
        logits = np.zeros((len(sums), N_CLASSES), np.float32)
        logits[:, :3] = sums
        return logits

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        self.profiles_used.append(self._profile)
        kind = ctypes.c_uint8 if self._engine.kind == "UINT8" else ctypes.c_float
        flat = (kind * int(np.prod(self._shape))).from_address(self._addresses["images"])
        logits = self.compute(np.array(flat, np.float32).reshape(self._shape))
        ctypes.memmove(self._addresses[self._engine.output], logits.ctypes.data, logits.nbytes)
        return True
