"""The device sheet: the hardware and software of a measurement, and whether it was throttled.

It is read from the operating system's files, nvpmodel, and NVIDIA's management library if
nvidia-ml-py is installed. Facts that a machine does not have are left out.

Source of Jetson's file paths: NVIDIA's Jetson Linux developer guide, power management and INA3221
monitors.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge import __version__
from kdedge.errors import SetupError
from kdedge.packages import installed_version
from kdedge.runtime import machine
from kdedge.runtime.cuda import find_gpu
from kdedge.runtime.machine import cpu_model, memory_bytes, usable_cores
from kdedge.runtime.process import may_spin
from kdedge.targets.registry import list_targets


def device_sheet() -> dict[str, Any]:
    """Returns machine, processor, first GPU, versions and power mode as plain values."""
    sheet: dict[str, Any] = {
        "cpu": cpu_model(),
        "cpu_cores": usable_cores(),
        "memory_bytes": memory_bytes(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {"kdedge": __version__, **_versions()},
    }
    if "OMP_NUM_THREADS" in os.environ:  # libraries take their number of threads from it
        sheet["omp_num_threads"] = os.environ["OMP_NUM_THREADS"]
    sheet["threads_spin"] = may_spin()
    governors = _read_files("sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    if governors:
        sheet["governor"] = ", ".join(sorted(set(governors)))
    gpu = _first_gpu()
    if gpu is not None:
        sheet["gpus"] = [_describe_gpu(gpu)]
    jetson = _jetson()
    if jetson:
        sheet["jetson"] = jetson
    return sheet


def _versions() -> dict[str, str]:
    """Versions of torch, NumPy and the packages of targets with a backend."""
    targets = [target for target in list_targets() if target.backend is not None]
    names = ["torch", "numpy"]
    for target in targets:
        for package in target.build_packages:
            names += package.distributions
    versions = {name: installed_version(name) for name in names}
    return {name: version for name, version in versions.items() if version is not None}


def _read_files(pattern: str) -> list[str]:
    """The contents of the files that match a pattern; unreadable files are skipped."""
    texts = []
    for path in sorted(machine.ROOT.glob(pattern)):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            texts.append(path.read_text(encoding="utf-8").strip("\0\n "))
    return texts


def _jetson() -> dict[str, Any]:
    """Board, release and power mode; empty unless this is a Jetson."""
    release = _read_files("etc/nv_tegra_release")
    if not release:
        return {}
    policy = "sys/devices/system/cpu/cpu*/cpufreq/scaling"
    lowest, highest = _read_files(f"{policy}_min_freq"), _read_files(f"{policy}_max_freq")
    return {
        "board": next(iter(_read_files("proc/device-tree/model")), "unknown"),
        "release": release[0].splitlines()[0].strip("# "),
        "power_mode": _power_mode(),
        # jetson_clocks sets the lowest frequency to the highest
        "clocks_are_fixed": lowest == highest if lowest else None,
    }


def _power_mode() -> str:
    """The output of `nvpmodel -q`, on one line."""
    try:
        completed = subprocess.run(
            ["nvpmodel", "-q"],  # noqa: S607 - where it is differs between releases
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown: nvpmodel -q failed"
    return " ".join(completed.stdout.split())


# Intel's counters of thermal throttling, and Jetson's of over-current events
_COUNTERS = {
    "throttle_events": "sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count",
    "over_current_events": "sys/class/hwmon/hwmon*/oc*_event_cnt",
}


def conditions() -> dict[str, Any]:
    """State that may change during a measurement: counters of throttling."""
    state: dict[str, Any] = {}
    for key, pattern in _COUNTERS.items():
        if counted := _read_files(pattern):
            state[key] = sum(int(text) for text in counted)
    gpu = _first_gpu()
    if gpu is not None:
        state["gpu"] = _gpu_conditions(gpu)
    return state


def was_throttled(before: dict[str, Any], after: dict[str, Any]) -> bool | None:
    """Whether the device was throttled in between; None if the machine has no such counter."""
    signs = {key: after[key] > before.get(key, 0) for key in _COUNTERS if key in after}
    if not signs.get("over_current_events"):  # a Jetson does not count what heat slows
        signs.pop("over_current_events", None)
    gpu = after.get("gpu", {})
    earlier = before.get("gpu", {})
    if gpu.get("throttle_reasons"):  # the GPU is idle again: that there is none proves nothing
        signs["reasons"] = True
    slowed_ns, earlier_ns = gpu.get("slowed_ns"), earlier.get("slowed_ns")
    if slowed_ns is not None and earlier_ns is not None:
        signs["slowed"] = slowed_ns > earlier_ns
    return any(signs.values()) if signs else None


@dataclass(frozen=True)
class _Gpu:
    """A GPU, as NVIDIA's management library sees it.

    Attributes:
        nvml: the library.
        handle: its handle of the GPU.
    """

    nvml: Any
    handle: Any

    def query(self, getter: Callable[..., Any], *arguments: Any) -> Any:
        """The library's value for this GPU; None if the GPU does not support the query."""
        return _query(self.nvml, getter, self.handle, *arguments)


def _first_gpu() -> _Gpu | None:
    """The first GPU that CUDA may use; None if the library, the driver or the GPU is missing.

    A Jetson has no such library. NVML counts GPUs in another order than CUDA, and also those that
    this process may not use.
    """
    try:
        import pynvml as nvml

        bus_id = find_gpu().bus_id
    except (ImportError, SetupError):
        return None
    try:
        nvml.nvmlInit()
        return _Gpu(nvml, nvml.nvmlDeviceGetHandleByPciBusId(bus_id))
    except nvml.NVMLError:
        return None


def _describe_gpu(gpu: _Gpu) -> dict[str, Any]:
    nvml = gpu.nvml
    memory = gpu.query(nvml.nvmlDeviceGetMemoryInfo)
    milliwatts = gpu.query(nvml.nvmlDeviceGetEnforcedPowerLimit)
    return {
        "name": gpu.query(nvml.nvmlDeviceGetName),
        "driver": _query(nvml, nvml.nvmlSystemGetDriverVersion),
        "memory_bytes": None if memory is None else memory.total,
        "power_limit_watts": None if milliwatts is None else milliwatts / 1000,
    }


def _gpu_conditions(gpu: _Gpu) -> dict[str, Any]:
    nvml = gpu.nvml
    throttle_bits = {
        "power": nvml.nvmlClocksThrottleReasonSwPowerCap,
        "heat": nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        | nvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "hardware": nvml.nvmlClocksThrottleReasonHwSlowdown,
    }
    reasons = gpu.query(nvml.nvmlDeviceGetCurrentClocksThrottleReasons) or 0
    policies = (nvml.NVML_PERF_POLICY_POWER, nvml.NVML_PERF_POLICY_THERMAL)
    statuses = [gpu.query(nvml.nvmlDeviceGetViolationStatus, policy) for policy in policies]
    times = [int(status.violationTime) for status in statuses if status is not None]
    return {
        "throttle_reasons": [name for name, bit in throttle_bits.items() if reasons & bit],
        # Total time of throttling by power and heat; None if the GPU does not count it
        "slowed_ns": sum(times) if times else None,
    }


def _query(nvml: Any, getter: Any, *arguments: Any) -> Any:
    """The library's value; None if a GPU does not support the query."""
    try:
        value = getter(*arguments)
    except nvml.NVMLError:
        return None
    return value.decode() if isinstance(value, bytes) else value


_PERIOD_S = 0.05
_MODULE_INPUT = "VDD_IN"


def find_power() -> SampledPower | None:
    """Returns the power sensor of this machine; None if there is none."""
    read_module = _ina_reader()
    if read_module is not None:
        return SampledPower(read_module)
    read_gpu = _nvml_reader()
    if read_gpu is not None:
        return SampledPower(read_gpu, devices=(0,))
    return None


class SampledPower:
    """Samples watts in a thread while something runs.

    Args:
        read: returns the current watts; None if the sensor cannot be read.
        devices: devices that the sensor covers: 0 is the first GPU, None the CPU.
    """

    def __init__(
        self, read: Callable[[], float | None], devices: Sequence[int | None] = (None, 0)
    ) -> None:
        self._read = read
        self.devices = devices

    @contextlib.contextmanager
    def during(self, samples: list[float]) -> Iterator[None]:
        """Context in which samples are added to a list; the first one is taken at once."""
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


@dataclass(frozen=True)
class _Rail:
    """A power rail's files: volts in mV, amperes in mA."""

    volts: Path
    amperes: Path

    def microwatts(self) -> int:
        return int(self.volts.read_text()) * int(self.amperes.read_text())


def _ina_reader() -> Callable[[], float | None] | None:
    """Reads the module's input rail, or the sum of all rails if the board has none."""
    rails: dict[str, _Rail] = {}
    for label in sorted(machine.ROOT.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/in*_label")):
        number = label.name.removeprefix("in").removesuffix("_label")
        rail = _Rail(
            volts=label.with_name(f"in{number}_input"),
            amperes=label.with_name(f"curr{number}_input"),
        )
        # Some labels have no current: they are not rails
        if rail.volts.is_file() and rail.amperes.is_file():
            rails[label.read_text().strip()] = rail
    if not rails:
        return None
    chosen = [rails[_MODULE_INPUT]] if _MODULE_INPUT in rails else list(rails.values())

    def read() -> float | None:
        try:
            return sum(rail.microwatts() for rail in chosen) / 1e6
        except (OSError, ValueError):
            return None

    return read


def _nvml_reader() -> Callable[[], float | None] | None:
    """Reads the power of the first GPU that CUDA may use."""
    gpu = _first_gpu()
    if gpu is None:
        return None
    nvml = gpu.nvml

    def read() -> float | None:
        # nvmlDeviceGetPowerUsage of newer GPUs is a mean over a second, longer than a turn
        found = gpu.query(nvml.nvmlDeviceGetFieldValues, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if found is not None and found[0].nvmlReturn == nvml.NVML_SUCCESS:
            return float(found[0].value.uiVal) / 1000
        milliwatts = gpu.query(nvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else milliwatts / 1000

    return None if read() is None else read
