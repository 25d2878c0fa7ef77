"""Builds engines, with TensorRT 10 or 11 or TensorRT for RTX.

The two packages have the same Python API. Networks are strongly typed: an engine has the precision
of its ONNX file.

Polygraphy is not used: an environment variable, read at import, binds it to one of the two packages
per process, but `kdedge export` may build for both.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from kdedge.errors import KdedgeError, ResourceError, SetupError
from kdedge.files import write_atomic
from kdedge.targets.base import BuildRequest
from kdedge.targets.engines.package import open_log

_T = TypeVar("_T")
log = logging.getLogger(__name__)


def make_monitor(module: ModuleType, canceled: threading.Event) -> Any:
    """TensorRT's progress monitor, which ends a build once the event is set in another thread."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not canceled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def in_a_thread(
    work: Callable[[], _T], canceled: threading.Event, what: str, *, report_every_s: float = 30.0
) -> _T:
    """Runs a build in another thread, so that Ctrl-C works.

    Signals interrupt the main thread only. In the building thread, a signal would interrupt
    TensorRT's call of our logger, and TensorRT ignores exceptions of its callbacks.

    Args:
        work: runs the build.
        canceled: set by Ctrl-C.
        what: name of the build, for the log.
        report_every_s: seconds between log lines during the build.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(_run_and_release, work)
            while not wait([future], timeout=report_every_s).done:
                log.info(f"{what}: {time.monotonic() - began:.0f} s so far.")
        except KeyboardInterrupt:
            canceled.set()
            raise
        return future.result()


def _run_and_release(work: Callable[[], _T]) -> _T:
    """Runs a build; if it fails, frees its builder at once.

    An exception's traceback keeps the builder alive. The garbage collector may then free it inside
    the next builder's constructor, and wait forever for the lock that this constructor holds.
    """
    try:
        return work()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise


_MAX_ERRORS_SHOWN = 4  # TensorRT's parser logs four errors for a node that it refuses


class EngineBuilder:
    """Builds engines with one of the two packages.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
        title: name of the package in messages.
        timing_cache: file that makes later builds on the same device faster; None if the package
            has no such cache.
    """

    def __init__(self, module: ModuleType, *, title: str, timing_cache: Path | None) -> None:
        if TYPE_CHECKING:
            import tensorrt

            self._trt = tensorrt
        else:
            self._trt = module
        self._module = module
        self._timing_cache = timing_cache
        self._tool = title
        self._title = f"{title} {module.__version__}"

    def build_file(self, request: BuildRequest, device: dict[str, Any]) -> dict[str, Any]:
        """Builds a target's engine from an ONNX file of the same precision.

        Args:
            request: has the ONNX file, the engine's path and the batches.
            device: record of the device for which it is built.

        Returns:
            The record of the build; its profiles are from `build`.

        Raises:
            SetupError, ResourceError: see `build`.
        """
        assert request.onnx_path is not None
        batches = request.artifact.batches
        return {
            "tool": self._tool,
            "version": self._module.__version__,
            **device,
            "profiles": self.build(request.onnx_path, request.path, batches=batches),
        }

    def build(
        self, onnx_path: Path, path: Path, *, batches: tuple[int, int]
    ) -> list[dict[str, int]]:
        """Builds an engine and writes it atomically.

        Ctrl-C cancels the build.

        Args:
            onnx_path: the graph, with one input [B, 3, S, S] and any number of outputs.
            path: the engine file.
            batches: smallest and largest batch.

        Returns:
            The engine's profiles: batch min, opt and max.

        Raises:
            SetupError: this TensorRT cannot read or build the graph.
            ResourceError: memory or disk ran out.
        """
        canceled = threading.Event()
        data, profiles = in_a_thread(
            lambda: self._serialize(onnx_path, batches, canceled), canceled, f"Building {path.name}"
        )
        write_atomic(path, data)
        return profiles

    def _serialize(
        self, onnx_path: Path, batches: tuple[int, int], canceled: threading.Event
    ) -> tuple[bytes, list[dict[str, int]]]:
        """Builds the engine; returns its bytes and its profiles."""
        trt_log = open_log(self._module)
        try:
            builder = self._trt.Builder(trt_log)
        except (RuntimeError, TypeError) as error:  # pybind11 raises these for a null pointer
            raise self._failure("cannot start to build", trt_log, onnx_path) from error
        kinds = self._trt.NetworkDefinitionCreationFlag
        # A version without this flag makes all networks strongly typed
        strong = getattr(kinds, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strong is None else 1 << int(strong))
        parser = self._trt.OnnxParser(network, trt_log)
        is_parsed = parser.parse_from_file(str(onnx_path))
        if not is_parsed or parser.num_errors:
            raise self._failure("cannot read", trt_log, onnx_path)
        images = network.get_input(0)
        config = builder.create_builder_config()
        config.clear_flag(self._trt.BuilderFlag.TF32)  # float32 means float32
        profiles = self._add_profiles(builder, config, images, batches)
        self._read_timing_cache(config)
        config.progress_monitor = make_monitor(self._module, canceled)
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            raise self._failure("could not build", trt_log, onnx_path)
        self._write_timing_cache(config)
        return bytes(serialized), profiles

    def _add_profiles(
        self, builder: Any, config: Any, images: Any, batches: tuple[int, int]
    ) -> list[dict[str, int]]:
        """Adds a profile for all batches, tuned for the largest, and one for the smallest.

        Tools that do not know profiles use the first one, so it takes every batch.
        """
        shape = tuple(images.shape)
        low, high = batches
        profiles = [{"min": low, "opt": high, "max": high}]
        if shape[0] != -1:
            return profiles
        if low < high:
            profiles.append({"min": low, "opt": low, "max": low})
        for batch in profiles:
            profile = builder.create_optimization_profile()
            shapes = [(batch[key], *shape[1:]) for key in ("min", "opt", "max")]
            profile.set_shape(images.name, *shapes)
            config.add_optimization_profile(profile)
        return profiles

    def _read_timing_cache(self, config: Any) -> None:
        """Gives the builder the timing cache, or a new one."""
        path = self._timing_cache
        if path is None:
            return
        try:
            data = path.read_bytes()
        except OSError:  # an engine is complete without a cache
            data = b""
        cache = config.create_timing_cache(data)
        # Replaces a cache that is damaged or belongs to another device
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def _write_timing_cache(self, config: Any) -> None:
        """Saves the timing cache, if the package has one."""
        cache = None if self._timing_cache is None else config.get_timing_cache()
        if self._timing_cache is None or cache is None:
            return
        try:
            self._timing_cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._timing_cache, bytes(cache.serialize()))
        except (OSError, ResourceError) as error:  # an engine is complete without a cache
            log.debug(f"The timing cache could not be saved: {error}")

    def _failure(self, what: str, trt_log: Any, onnx_path: Path) -> KdedgeError:
        """The error for a step of the builder that failed, with TensorRT's last messages."""
        detail = "\n  ".join(trt_log.errors[-_MAX_ERRORS_SHOWN:]) or "It gave no reason."
        text = f"{self._title} {what} {onnx_path}.\n  {detail}\n  "
        if "out of memory" in detail.lower() or "outofmemory" in detail.lower():
            return ResourceError(
                f"{text}Lower export.max_batch, or close other programs that use the GPU."
            )
        return SetupError(
            f"{text}`kdedge doctor` shows the driver and the versions on this machine. ONNX Runtime"
            " can run the file without an engine."
        )
