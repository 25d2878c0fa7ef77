"""Running an engine: buffers, shapes and calls, on a GPU and a TensorRT made of host memory."""

from __future__ import annotations

import ctypes
import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kdedge.errors import DataError, SetupError
from kdedge.runtime.backends._cudart import Cuda
from kdedge.runtime.backends._engine import Engine, deserialize

N_CLASSES = 4


class Function:
    """A C function: may be called and given argument types."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class HostCudart:
    """A libcudart whose device memory is host memory.

    Attributes:
        allocated: sizes in bytes by address.
        fails: name of the function that gives error 2, if any.
    """

    def __init__(self) -> None:
        self.allocated: dict[int, int] = {}
        self.fails = ""
        self._kept: dict[int, Any] = {}
        for name in (
            *("cudaMalloc", "cudaFree", "cudaMemcpyAsync", "cudaStreamCreate"),
            *("cudaStreamSynchronize", "cudaStreamDestroy", "cudaGetErrorString"),
            *("cudaGetDeviceCount", "cudaSetDevice", "cudaDeviceGetAttribute"),
        ):
            setattr(self, name, Function(self._guarded(name)))

    def _guarded(self, name: str) -> Any:
        call = getattr(self, f"_{name}", lambda *_: 0)
        return lambda *arguments: 2 if name == self.fails else call(*arguments)

    def _cudaGetErrorString(self, code: int) -> bytes:
        return b"out of memory"

    def _cudaGetDeviceCount(self, count: Any) -> int:
        count._obj.value = 1
        return 0

    def _cudaDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def _cudaStreamCreate(self, stream: Any) -> int:
        stream._obj.value = 77
        return 0

    def _cudaMalloc(self, pointer: Any, n_bytes: int) -> int:
        memory = ctypes.create_string_buffer(n_bytes)
        address = ctypes.addressof(memory)
        self._kept[address], self.allocated[address] = memory, n_bytes
        pointer._obj.value = address
        return 0

    def _cudaFree(self, address: int) -> int:
        del self._kept[address], self.allocated[address]
        return 0

    def _cudaMemcpyAsync(self, to: int, source: int, n_bytes: int, kind: int, stream: int) -> int:
        on_device = to if kind == 1 else source
        assert n_bytes <= self.allocated[on_device]
        ctypes.memmove(to, source, n_bytes)
        return 0


class Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class HostTensorRT:
    """A TensorRT whose engine sums up each image's channels; the engine file is its settings.

    The file holds the lowest and highest batch, the input's type, and the output's name.
    """

    __version__ = "10.3.0"
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
            low, high, kind, output = data.decode().split()[1:]
            return HostEngine(int(low), int(high), kind, output)


class HostEngine:
    num_io_tensors = 2

    def __init__(self, low: int, high: int, kind: str, output: str) -> None:
        self.low, self.high, self.kind, self.output = low, high, kind, output

    def get_tensor_name(self, index: int) -> str:
        return ("images", self.output)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "images" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=self.kind if name == "images" else "FLOAT")

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first = self.low if self.low == self.high else -1
        return (first, 3, 2, 2) if name == "images" else (first, N_CLASSES)

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return [(n, 3, 2, 2) for n in (self.low, self.high, self.high)]

    def create_execution_context(self) -> Any:
        return HostContext(self)


class HostContext:
    def __init__(self, engine: HostEngine) -> None:
        self._engine, self._addresses, self._shape = engine, {}, ()

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shape = shape
        return shape[1:] == (3, 2, 2)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        kind = ctypes.c_uint8 if self._engine.kind == "UINT8" else ctypes.c_float
        flat = (kind * int(np.prod(self._shape))).from_address(self._addresses["images"])
        sums = np.array(flat, np.float32).reshape(self._shape).sum(axis=(2, 3))
        logits = np.zeros((len(sums), N_CLASSES), np.float32)
        logits[:, :3] = sums
        ctypes.memmove(self._addresses[self._engine.output], logits.ctypes.data, logits.nbytes)
        return True


@pytest.fixture
def cudart() -> HostCudart:
    """The host's memory as a GPU's."""
    return HostCudart()


def load(tmp_path: Path, cudart: HostCudart, text: str) -> Engine:
    path = tmp_path / "m.engine"
    path.write_text(text)
    loaded = deserialize(HostTensorRT, path, name="tensorrt", gpu="a GPU", built_with=None)
    return Engine(HostTensorRT, Cuda(cudart), loaded, path=path, name="tensorrt")


def images(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 3, 2, 2)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["FLOAT", "UINT8"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_batch_of_the_profile_goes_through(
    tmp_path: Path, cudart: HostCudart, kind: str, n: int
) -> None:
    engine = load(tmp_path, cudart, f"engine 1 5 {kind} logits")
    assert engine.batches == (1, 5)
    logits = engine.run(images(n))
    assert logits.shape == (n, N_CLASSES)
    assert logits[:, :3].tolist() == images(n).sum(axis=(2, 3)).astype(np.float32).tolist()


def test_a_transposed_view_is_copied_as_it_looks(tmp_path: Path, cudart: HostCudart) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 UINT8 logits")
    turned = images(2).transpose(0, 1, 3, 2)[::-1]
    assert engine.run(turned)[:, :3].tolist() == turned.sum(axis=(2, 3)).tolist()


def test_results_stay_when_the_next_batch_runs(tmp_path: Path, cudart: HostCudart) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 UINT8 logits")
    first = engine.run(images(2))
    before = first.copy()
    engine.run(images(3))
    assert first.tolist() == before.tolist()


def test_a_static_engine_takes_its_one_batch(tmp_path: Path, cudart: HostCudart) -> None:
    engine = load(tmp_path, cudart, "engine 2 2 UINT8 logits")
    assert engine.batches == (2, 2)
    with pytest.raises(SetupError, match=r"takes 2 to 2 images at once, not \(3, 3, 2, 2\)"):
        engine.run(images(3))


def test_an_image_of_another_size_is_refused(tmp_path: Path, cudart: HostCudart) -> None:
    engine = load(tmp_path, cudart, "engine 1 2 UINT8 logits")
    with pytest.raises(SetupError, match="not "):
        engine.run(np.zeros((1, 3, 4, 4), np.uint8))


def test_buffers_are_those_of_the_largest_batch_and_are_given_back(
    tmp_path: Path, cudart: HostCudart
) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 FLOAT logits")
    assert sorted(cudart.allocated.values()) == [5 * N_CLASSES * 4, 5 * 3 * 2 * 2 * 4]
    engine.close()
    engine.close()
    assert cudart.allocated == {}


def test_it_says_what_runs_it(tmp_path: Path, cudart: HostCudart) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 FLOAT logits")
    assert engine.describe() == "tensorrt 10.3.0 GPU 8.7"


@pytest.mark.parametrize("text", ["engine 1 5 FLOAT scores", "engine 1 5 HALF logits"])
def test_an_engine_that_is_no_classifier_is_refused(
    tmp_path: Path, cudart: HostCudart, text: str
) -> None:
    with pytest.raises(DataError, match="Expected 'images', FLOAT or UINT8, as input"):
        load(tmp_path, cudart, text)


def test_a_null_engine_gives_tensorrts_error_in_one_line(
    tmp_path: Path, cudart: HostCudart
) -> None:
    with pytest.raises(SetupError) as caught:
        load(tmp_path, cudart, "something else")
    assert str(caught.value) == (
        f"{tmp_path / 'm.engine'} cannot be loaded by tensorrt 10.3.0 on a GPU: Serialization"
        " assertion failed.\n"
        "  An engine runs only with the version and the kind of GPU that it was built for. Build"
        f" one on this machine: kdedge export {tmp_path} --trt"
    )


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaStreamCreate"])
def test_too_little_memory_is_told_by_cuda(
    tmp_path: Path, cudart: HostCudart, function: str
) -> None:
    cudart.fails = function
    with pytest.raises(SetupError, match=f"{function} failed with error 2, out of memory"):
        load(tmp_path, cudart, "engine 1 5 FLOAT logits")


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_failure_while_running_is_told_by_cuda(
    tmp_path: Path, cudart: HostCudart, function: str
) -> None:
    engine = load(tmp_path, cudart, "engine 1 5 FLOAT logits")
    cudart.fails = function
    with pytest.raises(SetupError, match=f"{function} failed"):
        engine.run(images(1))
