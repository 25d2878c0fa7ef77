"""The device sheet, power and throttling, on machines made of files and a made-up NVML."""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdedge.benchmarking.device import (
    SampledPower,
    conditions,
    device_sheet,
    find_power,
    was_throttled,
)


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


pytestmark = pytest.mark.usefixtures("system_root", "cudart")


@pytest.fixture(autouse=True)
def _no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


def test_this_machines_sheet_names_processor_and_versions() -> None:
    sheet = device_sheet()
    assert sheet["cpu"]
    assert sheet["cpu_cores"] > 0
    assert "numpy" in sheet["versions"]
    assert "jetson" not in sheet


JETSON = {
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1\nmore\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_min_freq": "729600\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1510400\n",
    "sys/class/hwmon/hwmon1/oc1_event_cnt": "0\n",
}


def test_a_jetsons_sheet_has_board_release_mode_and_clocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "bin" / "nvpmodel"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'NV Power Mode: MAXN_SUPER'\necho 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    write(tmp_path, JETSON)
    jetson = device_sheet()["jetson"]
    assert jetson == {
        "board": "NVIDIA Jetson Orin Nano Developer Kit",
        "release": "R36 (release), REVISION: 4.3, GCID: 1",
        "power_mode": "NV Power Mode: MAXN_SUPER 2",
        "clocks_are_fixed": False,
    }
    assert device_sheet()["governor"] == "schedutil"


def test_throttling_is_noticed_by_counters(tmp_path: Path) -> None:
    write(tmp_path, JETSON)
    before = conditions()
    assert was_throttled(before, conditions()) is None  # heat is not counted
    write(tmp_path, {"sys/class/hwmon/hwmon1/oc1_event_cnt": "3\n"})
    after = conditions()
    assert was_throttled(before, after) is True
    assert was_throttled(after, conditions()) is None  # of what was before nobody asks
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    write(tmp_path, {count: "3\n"})
    assert was_throttled(conditions(), conditions()) is False


def test_clocks_are_fixed_where_the_lowest_is_the_highest(tmp_path: Path) -> None:
    clocks = "sys/devices/system/cpu/cpu0/cpufreq/scaling"
    write(tmp_path, JETSON | {f"{clocks}_min_freq": JETSON[f"{clocks}_max_freq"]})
    assert device_sheet()["jetson"]["clocks_are_fixed"] is True
    for name in ("min", "max"):
        (tmp_path / f"{clocks}_{name}_freq").unlink()
    assert device_sheet()["jetson"]["clocks_are_fixed"] is None


def test_where_nothing_counts_nobody_knows(tmp_path: Path) -> None:
    assert was_throttled(conditions(), conditions()) is None


def rail(number: int, label: str, millivolts: int, milliamperes: int) -> dict[str, str]:
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
    return {
        f"{folder}/in{number}_label": f"{label}\n",
        f"{folder}/in{number}_input": f"{millivolts}\n",
        f"{folder}/curr{number}_input": f"{milliamperes}\n",
    }


def watts() -> float:
    samples: list[float] = []
    with find_power().during(samples):
        time.sleep(0.01)
    return statistics.fmean(samples)


def test_the_modules_input_rail_is_its_power(tmp_path: Path) -> None:
    files = rail(1, "VDD_IN", 5000, 2000) | rail(2, "VDD_CPU_GPU_CV", 5000, 900)
    write(tmp_path, files)
    assert watts() == pytest.approx(10.0)


def test_without_one_it_is_the_sum_of_all_rails(tmp_path: Path) -> None:
    files = rail(1, "VDD_GPU_SOC", 20000, 500) | rail(2, "VDD_CPU_CV", 20000, 250)
    folder = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
    files[f"{folder}/in7_label"] = "sum of shunt voltages\n"
    write(tmp_path, files)
    assert watts() == pytest.approx(15.0)


def test_rails_cover_the_module_and_nvml_the_gpu_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", MadeUpNvml())
    assert find_power().devices == (0,)
    write(tmp_path, rail(1, "VDD_IN", 5000, 2000))
    assert find_power().devices == (None, 0)


def test_a_machine_without_rails_has_no_power(tmp_path: Path) -> None:
    assert find_power() is None


def test_a_rail_that_does_not_answer_for_once_costs_its_sample_alone(tmp_path: Path) -> None:
    write(tmp_path, rail(1, "VDD_IN", 5000, 2000))
    power = find_power()
    (amperes,) = tmp_path.rglob("curr1_input")
    samples: list[float] = []
    with power.during(samples):
        time.sleep(0.01)
        amperes.rename(amperes.with_name("gone"))
        time.sleep(0.12)
    assert samples == [pytest.approx(10.0)]
    with power.during(samples):
        pass
    assert len(samples) == 1


def test_a_sensor_is_read_all_the_time_and_at_least_once() -> None:
    power = SampledPower(lambda: 5.0)
    long: list[float] = []
    short: list[float] = []
    with power.during(long):
        time.sleep(0.12)
    with power.during(short):
        pass
    assert len(long) > len(short) == 1


class MadeUpNvml(SimpleNamespace):
    """An NVML with one GPU that draws 200 W and is slowed by its power limit."""

    class NVMLError(Exception):
        pass

    NVML_FI_DEV_POWER_INSTANT, NVML_SUCCESS = 186, 0
    NVML_PERF_POLICY_POWER, NVML_PERF_POLICY_THERMAL = 0, 1
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonSwThermalSlowdown = 32
    nvmlClocksThrottleReasonHwThermalSlowdown = 64
    nvmlClocksThrottleReasonHwSlowdown = 8

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetHandleByPciBusId": "gpu",
            "nvmlDeviceGetName": b"NVIDIA H100",
            "nvmlSystemGetDriverVersion": "570.1",
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=1 << 36),
            "nvmlDeviceGetPowerUsage": 200_000,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 4 | 1,
            "nvmlInit": None,
            "nvmlShutdown": None,
        }

        def answer(*arguments: Any) -> Any:
            if name not in answers:
                raise self.NVMLError("not supported")
            return answers[name]

        return answer


def test_a_gpu_is_described_and_its_throttling_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", MadeUpNvml())
    (gpu,) = device_sheet()["gpus"]
    assert gpu == {
        "name": "NVIDIA H100",
        "driver": "570.1",
        "memory_bytes": 1 << 36,
        "power_limit_watts": None,  # this one does not say
    }
    now = conditions()
    conditions_of_gpu = now["gpu"]
    assert conditions_of_gpu == {"throttle_reasons": ["power"], "slowed_ns": None}
    assert was_throttled(now, now) is True
    conditions_of_gpu["throttle_reasons"] = []
    assert was_throttled(now, now) is None  # it is idle now, and counts nothing
    assert watts() == pytest.approx(200.0)


def test_a_gpus_power_limit_is_in_watts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = MadeUpNvml(nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 700_000)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert device_sheet()["gpus"][0]["power_limit_watts"] == 700.0


def test_a_gpu_that_was_slowed_and_is_idle_again_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed = {0: 1000, 1: 50}
    nvml = MadeUpNvml(
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 1,  # idle
        nvmlDeviceGetViolationStatus=lambda gpu, policy: SimpleNamespace(
            violationTime=slowed[policy]
        ),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    before = conditions()
    assert was_throttled(before, conditions()) is False
    slowed[1] += 7
    assert was_throttled(before, conditions()) is True


def test_power_is_of_the_gpu_that_cuda_sees_first(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = {"0000:01:00.0": 60_000, "0000:65:00.0": 300_000}  # the order of NVML
    nvml = MadeUpNvml(
        nvmlDeviceGetHandleByPciBusId=lambda bus_id: bus_id,
        nvmlDeviceGetPowerUsage=draws.__getitem__,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert watts() == pytest.approx(300.0)


def test_power_is_that_of_the_moment_where_the_driver_tells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=120_000))
    nvml = MadeUpNvml(nvmlDeviceGetFieldValues=lambda gpu, fields: [value])
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert watts() == pytest.approx(120.0)
    value.nvmlReturn = 3  # not supported: the mean over a second
    assert watts() == pytest.approx(200.0)


def test_a_gpu_that_may_not_be_used_is_left_out(
    cudart: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(bus_id: str) -> Any:
        raise MadeUpNvml.NVMLError("Insufficient Permissions")

    nvml = MadeUpNvml(nvmlDeviceGetHandleByPciBusId=refuse)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert "gpus" not in device_sheet()
    assert find_power() is None
    cudart.n_gpus = 0
    monkeypatch.setitem(sys.modules, "pynvml", MadeUpNvml())
    assert find_power() is None
