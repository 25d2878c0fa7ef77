"""Runs engines of TensorRT and of TensorRT for RTX, and explains failures.

The name-based tensor API gives one code path for TensorRT 10, 11 and TensorRT for RTX. Polygraphy's
runner is not used: it supports only one of the two packages per process (see builder.py), and would
be one more package on the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import SetupError
from kdedge.files import read_bytes
from kdedge.runtime.artifact import INPUT_NAME, PixelType
from kdedge.runtime.cuda import open_cuda
from kdedge.targets.base import Target
from kdedge.targets.engines.package import engine_package, open_log

_DTYPES = {"FLOAT": np.float32, "UINT8": np.uint8}


def _first(errors: Sequence[str]) -> str:
    """The first error, shortened and without its full stop."""
    return errors[0].rstrip(".")[:300] if errors else "it gives no reason"


def _invalidity(trt: Any, runtime: Any, data: bytes) -> list[str]:
    """Reasons why TensorRT for RTX cannot run an engine; empty if it can or they are unknown."""
    if not hasattr(runtime, "get_engine_validity"):
        return []
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return []
    names = trt.EngineInvalidityDiagnostics.__members__
    reasons = [name for name, member in names.items() if int(diagnostics) & int(member)]
    return [name.lower().replace("_", " ") for name in reasons]


class Engine:
    """A loaded engine with its buffers on the GPU.

    Args:
        target: the engine's target.
        path: the engine; it is loaded onto the first GPU.
        n_threads: unused, since the GPU computes.
        built_with: the record of the engine's build, for messages.

    Raises:
        BackendUnavailable: the Python module, the driver or the GPU is missing.
        DataError: the file cannot be read.
        SetupError: this TensorRT cannot run it, or the GPU has too little memory.
    """

    def __init__(
        self,
        target: Target,
        path: Path,
        *,
        n_threads: int | None = None,
        built_with: Mapping[str, Any] | None = None,
    ) -> None:
        assert target.run_package is not None
        assert target.backend is not None
        trt: Any = engine_package(target.run_package)
        self.name = target.backend
        self._cuda = open_cuda()
        self._path = path
        self._version = trt.__version__
        self._context: Any = None
        self._runtime: Any = None
        self._engine: Any = None
        self._held = contextlib.ExitStack()  # stream and buffers, freed in reverse order
        with self._cuda.first_gpu():
            self._deserialize(trt, target, built_with or {})
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise

    def _deserialize(self, trt: Any, target: Target, built_with: Mapping[str, Any]) -> None:
        """Loads the engine, and keeps its logger and runtime, which it needs while it lives."""
        where = (
            f"{self.name} {self._version} on a GPU of compute capability"
            f" {self._cuda.gpu.compute_capability}"
        )
        self._log = open_log(trt)
        data = read_bytes(self._path)
        try:
            self._runtime = trt.Runtime(self._log)
        except (RuntimeError, TypeError) as error:  # pybind11 raises these for a null pointer
            raise SetupError(
                f"{where} cannot start: {_first(self._log.errors)}.\n"
                "  `nvidia-smi` shows the driver's version; this TensorRT may need a newer one."
            ) from error
        reasons = _invalidity(trt, self._runtime, data)
        self._engine = None if reasons else self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            keys = ("tool", "version", "device", "compute_capability")
            built = " ".join(str(built_with[key]) for key in keys if built_with.get(key))
            reason = "; ".join(reasons) if reasons else _first(self._log.errors)
            command = target.export_command(self._path.parent, int8=".int8." in self._path.name)
            raise SetupError(
                f"{self._path} cannot be loaded by {where}: {reason}.\n"
                f"  It was built with: {built or 'unknown'}.\n"
                "  An engine runs only with the TensorRT version and the kind of GPU that it was"
                f" built for. Build it on this machine: {command}"
            )

    def _prepare(self) -> None:
        """Creates the context, stream and buffers that a batch needs."""
        engine = self._engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        (self._output,) = set(names) - {INPUT_NAME}
        self._dtype = np.dtype(_DTYPES[engine.get_tensor_dtype(INPUT_NAME).name])
        self.pixels: PixelType = "uint8" if self._dtype == np.uint8 else "float"
        self.image_shape = tuple(map(int, self._engine.get_tensor_shape(INPUT_NAME)))[1:]
        low, high = self._batch_range()
        self.batches: tuple[int, int | None] = (low, high)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("does not fit into the free GPU memory")
        self._profile = 0  # of a new context
        self._n_outputs = int(tuple(self._engine.get_tensor_shape(self._output))[-1])
        n_bytes = {
            INPUT_NAME: high * int(np.prod(self.image_shape)) * self._dtype.itemsize,
            self._output: high * self._n_outputs * 4,
        }
        self._stream = self._cuda.new_stream()
        self._held.callback(self._cuda.destroy_stream, self._stream)
        self._addresses: dict[str, int] = {}
        for tensor, size in n_bytes.items():
            self._addresses[tensor] = address = self._cuda.allocate(size)
            self._held.callback(self._cuda.free, address)
            if not self._context.set_tensor_address(tensor, address):
                raise self._failure(f"does not accept a buffer for {tensor!r}")

    def _batch_range(self) -> tuple[int, int]:
        """Smallest and largest batch of the engine."""
        n_images, *_ = self._engine.get_tensor_shape(INPUT_NAME)
        if n_images >= 0:  # a dynamic batch is -1
            return int(n_images), int(n_images)
        lowest, _, highest = self._engine.get_tensor_profile_shape(INPUT_NAME, 0)
        return int(lowest[0]), int(highest[0])

    def run(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[B, 3, S, S] -> [B, C]; see `Backend.run`.

        Raises:
            SetupError: the engine was not built for this shape, or CUDA fails.
        """
        images = self._to_input(images)
        outputs = np.empty((len(images), self._n_outputs), np.float32)
        with self._cuda.first_gpu():
            self._cuda.copy_to_device(self._addresses[INPUT_NAME], images, self._stream)
            self._execute()
            self._cuda.copy_from_device(outputs, self._addresses[self._output], self._stream)
            self._cuda.synchronize(self._stream)
        return outputs

    def device_ms(self, images: npt.NDArray[Any]) -> float:
        """Time of one run on the GPU, in ms, without copies; see `DeviceTimed.device_ms`.

        Raises:
            SetupError: the engine was not built for this shape, or CUDA fails.
        """
        images = self._to_input(images)
        with self._cuda.first_gpu():
            self._cuda.copy_to_device(self._addresses[INPUT_NAME], images, self._stream)
            self._cuda.synchronize(self._stream)
            return self._cuda.elapsed_ms(self._execute, self._stream)

    def _to_input(self, images: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Sets the engine to the images' shape; returns the images in the engine's input type."""
        images = np.ascontiguousarray(images, dtype=self._dtype)
        low, high = self.batches
        fits = high is not None and low <= len(images) <= high
        if fits:
            self._choose_profile(len(images))
        if not fits or not self._context.set_input_shape(INPUT_NAME, images.shape):
            raise self._failure(f"takes {low} to {high} images at once, got shape {images.shape}")
        return images

    def _execute(self) -> None:
        """Starts the engine on the stream."""
        if not self._context.execute_async_v3(self._stream):
            raise self._failure("failed on the GPU")

    def _choose_profile(self, n_images: int) -> None:
        """Chooses the profile that was tuned for a batch: the second one for the smallest batch."""
        has_second = self._engine.num_optimization_profiles > 1
        profile = 1 if has_second and n_images == self.batches[0] else 0
        if profile == self._profile:
            return
        if not self._context.set_optimization_profile_async(profile, self._stream):
            raise self._failure(f"cannot use its profile {profile}")
        self._profile = profile

    def describe(self) -> str:
        """TensorRT's version and the GPU's compute capability."""
        return f"{self.name} {self._version} GPU {self._cuda.gpu.compute_capability}"

    def close(self) -> None:
        """Frees the buffers, the context and the engine, in this order.

        It never raises: after a failure of CUDA, every later call fails, too, and only the first
        failure matters.
        """
        with contextlib.suppress(SetupError):
            self._held.close()  # continues after an error
        self._context = self._engine = self._runtime = None  # from left to right

    def _failure(self, what: str) -> SetupError:
        """The error for a failed call of the engine, with TensorRT's last message."""
        reason = f": {_first(self._log.errors[-1:])}" if self._log.errors else ""
        return SetupError(
            f"{self._path} {what}{reason}.\n"
            "  Try a smaller batch, or run the ONNX file with the backend onnxruntime."
        )
