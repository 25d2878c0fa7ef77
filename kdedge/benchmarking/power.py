"""Power while a model runs: Jetson's INA3221 rails, or NVIDIA's management library.

Samples are taken by a thread at 20 Hz, and count only while a timed turn lasts. Nothing is
subtracted: the figure is the module's or the GPU's, not the model's share of it.
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
    """What measures power on this machine.

    Args:
        root: of the file system.
    """
    if (module := _ina_reader(root)) is not None:
        return SampledPower(module)
    if (gpu := _nvml_reader()) is not None:
        return SampledPower(gpu, devices=("GPU",))
    return NoPower()


class SampledPower:
    """Samples watts in a thread while something runs.

    Args:
        read: watts now; None where the sensor does not answer.
        devices: whose power that is.
    """

    def __init__(
        self, read: Callable[[], float | None], devices: Sequence[str] = ("CPU", "GPU")
    ) -> None:
        self._read, self._devices = read, devices
        self._samples: dict[Hashable, list[float]] = {}

    def covers(self, device: str) -> bool:
        """Whether what runs on `CPU` or `GPU` draws the power that is measured."""
        return device in self._devices

    @contextlib.contextmanager
    def during(self, key: Hashable) -> Iterator[None]:
        """Context in which samples are counted for `key`; one at least is tried."""
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
        """The mean of the samples since it was last asked for."""
        samples = self._samples.pop(key, [])
        return statistics.fmean(samples) if samples else None


def _ina_reader(root: Path) -> Callable[[], float | None] | None:
    """Reads the module's input rail, or on boards without one the sum of all rails."""
    rails: dict[str, tuple[Path, Path]] = {}
    for label in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        volts, amperes = (label.with_name(f"{kind}{number}_input") for kind in ("in", "curr"))
        if volts.is_file() and amperes.is_file():  # the chip's sum of shunt voltages is no rail
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
    """Reads the draw of the first GPU that CUDA may use."""
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
    """The handle of CUDA's first GPU: NVML counts those too that CUDA_VISIBLE_DEVICES hides."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first) if first.isdecimal() else 0)
