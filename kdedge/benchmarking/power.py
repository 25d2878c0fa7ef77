"""Measures power while a model runs: Jetson's INA3221 rails, or NVIDIA's management library.

A thread samples at 20 Hz, only during timed calls. Idle power is not subtracted: the figure is the
total of the module or the GPU.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kdedge.benchmarking.timing import NoPower, Power

_PERIOD_S = 0.05
_MODULE_INPUT = "VDD_IN"


def find_power(root: Path = Path("/")) -> Power:
    """Returns the power sensor of this machine.

    Args:
        root: root of the file system.
    """
    if (module := _ina_reader(root)) is not None:
        return SampledPower(module)
    if (gpu := _nvml_reader()) is not None:
        return SampledPower(gpu, devices=("GPU",))
    return NoPower()


class SampledPower:
    """Samples watts in a thread while something runs.

    Args:
        read: returns the current watts; None if the sensor does not answer.
        devices: devices that the sensor covers.
    """

    def __init__(
        self, read: Callable[[], float | None], devices: Sequence[str] = ("CPU", "GPU")
    ) -> None:
        self._read, self._devices = read, devices
        self._samples: dict[Hashable, list[float]] = {}

    def covers(self, device: str) -> bool:
        """Whether the sensor measures the power of `CPU` or `GPU`."""
        return device in self._devices

    @contextlib.contextmanager
    def during(self, key: Hashable) -> Iterator[None]:
        """Context in which samples count for `key`; at least one is taken."""
        samples = self._samples.setdefault(key, [])
        ended = threading.Event()

        def sample() -> None:
            while True:
                watts = self._read()
                if watts is not None:
                    samples.append(watts)
                if ended.wait(_PERIOD_S):
                    return

        thread = threading.Thread(target=sample, name="power", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def watts(self, key: Hashable) -> float | None:
        """The mean of the samples since the last call."""
        samples = self._samples.pop(key, [])
        return statistics.fmean(samples) if samples else None


def _ina_reader(root: Path) -> Callable[[], float | None] | None:
    """Reads the module's input rail, or the sum of all rails on boards without one."""
    rails: dict[str, tuple[Path, Path]] = {}
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        volts, amperes = (label.with_name(f"{kind}{number}_input") for kind in ("in", "curr"))
        if volts.is_file() and amperes.is_file():  # the chip's sum of shunt voltages is not a rail
            rails[label.read_text().strip()] = (volts, amperes)
    if not rails:
        return None
    chosen = [rails[_MODULE_INPUT]] if _MODULE_INPUT in rails else list(rails.values())

    def read() -> float | None:  # mV x mA
        try:
            return sum(int(v.read_text()) * int(a.read_text()) for v, a in chosen) / 1e6
        except (OSError, ValueError):
            return None

    return read


def _nvml_reader() -> Callable[[], float | None] | None:
    """Reads the power of the first GPU that CUDA may use."""
    try:
        import pynvml as nvml
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
        gpu = _first_gpu(nvml)
        nvml.nvmlDeviceGetPowerUsage(gpu)
    except nvml.NVMLError:
        return None

    def read() -> float | None:  # mW
        try:
            return float(nvml.nvmlDeviceGetPowerUsage(gpu)) / 1000
        except nvml.NVMLError:
            return None

    return read


def _first_gpu(nvml: Any) -> Any:
    """The handle of CUDA's first GPU; NVML also counts GPUs that CUDA_VISIBLE_DEVICES hides."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdecimal() else 0)
