"""The machine's peaks: the best library counts, and rates are of the work done."""

from __future__ import annotations

import functools
import importlib.util
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest

from kdedge.benchmarking.peak import Effort, measure_peaks

SMALL = Effort(side=64, copy_bytes=1 << 16, seconds=0.001)


def test_this_machine_has_peaks_with_what_reached_them() -> None:
    peaks = measure_peaks(n_threads=1, effort=SMALL)
    assert set(peaks) == {"CPU"}
    assert peaks["CPU"]["copy_bytes_per_second"] > 0
    found = peaks["CPU"]["gmacs_per_second"]["fp32"]
    assert found["rate"] > 0
    assert found["by"].split()[0] in {"NumPy", "PyTorch", "ONNX"}


@dataclass
class Clock:
    """A clock on which whatever is timed takes a second, but for what changes `now`."""

    now: float = 0.0

    def read(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    one = Clock()
    monkeypatch.setattr(time, "perf_counter", one.read)
    return one


@pytest.mark.parametrize(
    ("more_s", "by", "rate"), [(-0.75, "ONNX Runtime", 4.0), (1.0, "NumPy", 1.0)]
)
def test_the_fastest_library_of_a_precision_counts(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, more_s: float, by: str, rate: float
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")

    class Other:
        """An engine whose float product takes other times, and whose integers take 2 s."""

        def __init__(self, model: bytes, *_: Any, **__: Any) -> None:
            self.more_s = 1.0 if b"MatMulInteger" in model else more_s

        def run(self, *_: Any) -> None:
            clock.now += self.more_s

    monkeypatch.setattr(onnxruntime, "InferenceSession", Other)
    found = measure_peaks(effort=SMALL)["CPU"]["gmacs_per_second"]
    one_per_second = 64**3 / 1e9
    assert found["fp32"]["by"].startswith(by)
    assert found["fp32"]["rate"] == pytest.approx(rate * one_per_second)
    assert found["int8"] == {
        "rate": pytest.approx(one_per_second / 2),
        "by": f"ONNX Runtime {onnxruntime.__version__}",
    }


@pytest.mark.usefixtures("clock")
def test_a_byte_that_is_copied_is_read_and_written() -> None:
    assert measure_peaks(effort=SMALL)["CPU"]["copy_bytes_per_second"] == 2 * (1 << 16)


def test_numpy_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rates = measure_peaks(effort=SMALL)["CPU"]["gmacs_per_second"]
    assert rates["fp32"]["by"].startswith("NumPy")
    assert set(rates) == {"fp32"}


def test_a_gpu_that_torch_does_not_reach_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    measure = functools.partial(measure_peaks, gpu=True, effort=SMALL)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set(measure()) == {"CPU"}
    monkeypatch.setitem(sys.modules, "torch", None)  # as on a Jetson with TensorRT alone
    assert set(measure()) == {"CPU"}
