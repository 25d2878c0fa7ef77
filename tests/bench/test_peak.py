"""The machine's peaks: the best library counts, and rates are of the work done."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from kdedge.bench import peak


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_SIDE", 64)
    monkeypatch.setattr(peak, "_COPY_BYTES", 1 << 16)
    monkeypatch.setattr(peak, "_SECONDS", 0.001)


def test_this_machine_has_peaks_with_what_reached_them() -> None:
    peaks = peak.measure_peaks(n_threads=1)
    assert set(peaks) == {"CPU"}
    assert peaks["CPU"]["copy_bytes_per_second"] > 0
    found = peaks["CPU"]["gmacs_per_second"]["fp32"]
    assert found["rate"] > 0
    assert found["by"].split()[0] in {"NumPy", "PyTorch", "ONNX"}


def test_the_fastest_library_of_a_precision_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"slow": 2.0, "fast": 0.5, "other": 1.0}
    monkeypatch.setattr(peak, "_fastest", lambda work: seconds[work])
    products: Any = [("fp32", "A", "slow"), ("fp32", "B", "fast"), ("int8", "C", "other")]
    assert peak._best(iter(products), 1000) == {
        "gmacs_per_second": {"fp32": {"rate": 2.0, "by": "B"}, "int8": {"rate": 1.0, "by": "C"}}
    }


def test_a_byte_that_is_copied_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "_cpu_products", lambda n_threads: iter(()))
    monkeypatch.setattr(peak, "_fastest", lambda work: 0.5)
    assert peak.measure_peaks()["CPU"]["copy_bytes_per_second"] == 2 * (1 << 16) / 0.5


def test_numpy_alone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(peak.importlib.util, "find_spec", lambda name: None)
    rates = peak.measure_peaks()["CPU"]["gmacs_per_second"]
    assert rates["fp32"]["by"].startswith("NumPy")
    assert set(rates) == {"fp32"}


def test_a_gpu_that_torch_does_not_reach_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert set(peak.measure_peaks(gpu=True)) == {"CPU"}
    monkeypatch.setitem(sys.modules, "torch", None)  # as on a Jetson with TensorRT alone
    assert set(peak.measure_peaks(gpu=True)) == {"CPU"}
