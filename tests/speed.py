"""A measured table that never was: for tables, comparisons and records."""

from __future__ import annotations

from typing import Any

from kdedge.records.speed import Accuracy, Measurement, SpeedResult, SpeedRow


def measurement(batch: int = 1, p50_ms: float = 10.0, **other: Any) -> Measurement:
    """A measurement of a batch with this median."""
    values: dict[str, Any] = {
        "inputs": "on device",
        "n_calls": 100,
        "p90_ms": 1.1 * p50_ms,
        "p99_ms": 1.2 * p50_ms,
        "mean_ms": p50_ms,
        "cv_percent": 1.0,
        "images_per_second": 1000 * batch / p50_ms,
        "ratio": 1.0,
        "ratio_low": 0.95,
        "ratio_high": 1.05,
        "watts": None,
        "samples_ms": (p50_ms,) * 3,
    }
    return Measurement(batch=batch, p50_ms=p50_ms, **(values | other))


def row(model: str = "CLIP", *measurements: Measurement, **other: Any) -> SpeedRow:
    """The row of a model."""
    values: dict[str, Any] = {
        "source": "line3",
        "protocol": "cached",
        "precision": "fp32",
        "runtime": "PyTorch 2.13.0",
        "device": "CPU",
        "n_parameters": 86_000_000,
        "n_bytes": None,
        "gmacs_image": 17.5,
        "gmacs_call": 0.0,
        "memory_bytes": 500 << 20,
        "accuracy": Accuracy(70.1, 60.2, 64.77, 55.5, None, "line3/02", 2000),
        "gate": None,
        "problem": None,
    }
    return SpeedRow(model=model, measurements=measurements, **(values | other))


def result(*rows: SpeedRow, **other: Any) -> SpeedResult:
    """A table of rows."""
    values: dict[str, Any] = {
        "command": "kdedge bench",
        "measured_at": "2026-01-01T00:00:00+00:00",
        "settings": {"n_calls": 20, "n_rounds": 5, "batches": [1, 8], "threads": 2},
        "device": {"cpu": "A CPU", "cpu_cores": 2, "throttled": None},
        "baseline": rows[0].label if rows else None,
        "left_out": {},
    }
    return SpeedResult(rows=rows, **(values | other))
