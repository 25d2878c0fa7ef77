"""The record of `kdedge bench`, through JSON and back."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from kdedge.errors import DataError, SetupError
from kdedge.records.record import parse_record
from kdedge.records.speed import Accuracy, Measurement, SpeedResult, SpeedRow


@pytest.fixture
def result() -> SpeedResult:
    times = {"p50_ms": 1.25, "p90_ms": 1.5, "p99_ms": 1.75, "mean_ms": 1.3, "cv_percent": 4.0}
    found = Measurement(
        batch=8, inputs="copied", n_calls=3, **times, images_per_second=1 / 3, ratio=None,
        ratio_low=None, ratio_high=None, watts=12.5, samples_ms=(1.25, 1.3, 1.35),
    )  # fmt: skip
    row = SpeedRow(
        source="line3", model="model.onnx", protocol="cached", precision="fp32",
        runtime="onnxruntime 1.24.4", device="CPU", n_parameters=12, n_bytes=48, gmacs_image=0.1,
        gmacs_call=0.0, memory_bytes=None,
        accuracy=Accuracy(None, None, None, 50.0, 99.5, "5 images", 5), gate="passed",
        problem=None, measurements=(found,),
    )  # fmt: skip
    settings = {"batches": [8], "threads": None, "n_calls": 3, "n_rounds": 1, "seconds": 2.0}
    device = {"cpu": "A CPU", "cpu_cores": 2, "gpus": [{"name": "A GPU", "driver": "1"}]}
    return SpeedResult(
        command="kdedge bench", measured_at="2026-01-01T00:00:00+00:00", settings=settings,
        device=device, baseline="model.onnx", rows=(row,),
        left_out={"teacher": "it is gone"},
    )  # fmt: skip


def read(values: Any) -> SpeedResult:
    return parse_record(SpeedResult, json.dumps(values), where="b.json", remedy="Measure again.")


def test_a_wrong_value_is_named_with_its_place(result: SpeedResult) -> None:
    values = json.loads(json.dumps(result.to_dict()))
    values["rows"][0]["measurements"][0]["batch"] = "eight"
    with pytest.raises(DataError, match=r"rows.0.measurements.0.batch: .*got 'eight'"):
        read(values)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("p50_ms", 0),
        ("images_per_second", 0.0),
        ("samples_ms", [1.0, "x"]),
        ("samples_ms", [None]),
        ("ratio", -2.0),
    ],
)
def test_figures_that_a_table_could_not_show_are_refused(
    result: SpeedResult, key: str, value: Any
) -> None:
    values = json.loads(json.dumps(result.to_dict()))
    values["rows"][0]["measurements"][0][key] = value
    with pytest.raises(DataError, match=r"rows.0.measurements.0."):
        read(values)


def test_a_newer_format_is_refused_with_what_to_do(result: SpeedResult) -> None:
    with pytest.raises(
        SetupError, match=r"newer kdedge, in format 2.*up to 1.\n.*Install the newer kdedge"
    ):
        read({**result.to_dict(), "format": 2})


def test_it_prints_and_shows_as_a_table(result: SpeedResult) -> None:
    on_device = replace(result.rows[0].measurements[0], inputs="on device", p90_ms=5.0)
    result = replace(result, rows=(replace(result.rows[0], measurements=(on_device,)),))
    header, row, columns, doubt, throttled, left_out = str(result).splitlines()
    assert header.split() == ["model", "GFLOPs", "ms", "FPS", "ratio", "acc."]
    assert row.split() == ["model.onnx", "0.2", "1.25!", "0.333!", "-", "50.00"]
    assert columns.startswith("GFLOPs of one image, median ms per call,")
    assert "(model.onnx, batch 8: a tenth of its calls" in doubt
    assert "whether it was throttled" in throttled
    assert left_out == "Left out: teacher: it is gone"
    assert (
        '<td>model.onnx</td><td class="n">0.2</td><td class="n">1.25!</td>' in result._repr_html_()
    )
