"""Tables of speed and the front, on figures that are easy to tell apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kdedge.benchmarking.tables import named_rows
from kdedge.reporting.speed import front_plots, speed_blocks
from kdedge.speed_results import Accuracy, Measurement, SpeedResult, SpeedRow


def times(batch: int, ms: float, inputs: Any = "on device", **other: Any) -> Measurement:
    values: dict[str, Any] = {"watts": None, "ratio": 2.0, "ratio_low": 1.5, "ratio_high": 3.0}
    values |= other
    speed = 1000 * batch / ms
    return Measurement(
        *(batch, inputs, 20, ms, 2 * ms, 3 * ms, ms, 1.0, speed),
        *(values[key] for key in ("ratio", "ratio_low", "ratio_high", "watts")),
        (),
        values.get("others_percent"),
    )


def speed_row(model: str, *measurements: Measurement, **other: Any) -> SpeedRow:
    values: dict[str, Any] = {
        "n_bytes": None,
        "accuracy": Accuracy(60.0, 40.0, 48.0, 55.0, None, "tiny/02", 40),
    }
    return SpeedRow(
        source="tiny", model=model, protocol="cached", precision="fp32", n_parameters=2_500_000,
        gmacs_image=1.5, gmacs_call=0.0, gate=None, runtime="onnxruntime 1", device="CPU",
        memory_bytes=3 << 20, problem=None,
        measurements=measurements, **(values | other),
    )  # fmt: skip


def result_of(*rows: SpeedRow) -> SpeedResult:
    return SpeedResult(
        command="kdedge bench",
        measured_at="2026-01-02T03:04:05+00:00",
        settings={"batches": [1, 8], "threads": None, "n_rounds": 5, "n_calls": 20},
        device={"cpu": "A CPU", "cpu_cores": 2, "throttled": False},
        baseline="CLIP",
        rows=rows,
        left_out={},
    )


def rows_of(blocks: Any, title: str) -> Any:
    return next(block.rows for block in blocks if block.title.startswith(title))


def test_every_figure_has_its_column() -> None:
    row = speed_row(
        "m.onnx",
        times(1, 4.0, watts=10.0),
        times(8, 16.0),
        times(1, 40.0, "image file", watts=20.0),
        n_bytes=7_000_000,
    )
    blocks = speed_blocks(result_of(row), "front")
    assert rows_of(blocks, "Million parameters") == [["m.onnx", "2.5", "7", "3", "1.5", "3"]]
    assert rows_of(blocks, "Latency, ms per call at batch 1") == [["m.onnx", "4", "8", "12.0"]]
    assert rows_of(blocks, "Speed relative to CLIP") == [["m.onnx", "2.00", "1.50", "3.00", "1.0"]]
    assert rows_of(blocks, "FPS: images per second") == [["m.onnx", "250", "500"]]
    assert rows_of(blocks, "End to end") == [["m.onnx", "40.0", "80.0", "120", "25.0"]]
    assert rows_of(blocks, "Mean power") == [["m.onnx", "1", "10.0", "0.04"]]


def compared(percent: float) -> Accuracy:
    return Accuracy(None, None, None, percent, 99.0, "tiny/02, less the drop", 40)


def front(*rows: SpeedRow) -> Any:
    return front_plots(named_rows(result_of(*rows)), "front")


def drawn(plot: Any) -> dict[str, list[list[float]]]:
    """The points of a plot by kind of model: ms and percent."""
    (axes,) = plot.draw().axes
    return {mark.get_label(): mark.get_offsets().tolist() for mark in axes.collections}


def test_the_front_is_at_the_smallest_batch_and_of_the_accuracy_that_all_have() -> None:
    trained = speed_row("CLIP", times(1, 4.0), times(8, 5.0))
    (plot,) = front(trained)
    assert plot.title == "Accuracy against latency: harmonic mean of base and novel"
    assert drawn(plot) == {"in PyTorch": [[4.0, 48.0]]}
    file = speed_row("m.onnx", times(1, 2.0), accuracy=compared(50.0), n_bytes=9)
    unknown = speed_row("n.onnx", times(1, 1.0), accuracy=None, n_bytes=9)
    late = speed_row("o.onnx", times(8, 1.0), n_bytes=9)
    (plot,) = front(trained, file, unknown, late)
    assert plot.title == "Accuracy against latency: accuracy over all names"
    assert "2 of 4 models are left out" in plot.caption
    assert drawn(plot) == {"in PyTorch": [[4.0, 55.0]], "exported file": [[2.0, 50.0]]}


def test_accuracies_of_other_images_have_a_plot_of_their_own() -> None:
    clip = speed_row("CLIP", times(1, 4.0))
    other = replace(compared(50.0), n_images=2000)
    first, second = front(clip, speed_row("m.onnx", times(1, 2.0), accuracy=other, n_bytes=9))
    assert (first.name, second.name) == ("front", "front-2")
    assert "the same 40 images (tiny/02)" in first.caption
    assert drawn(first) == {"in PyTorch": [[4.0, 48.0]]}
    assert drawn(second) == {"exported file": [[2.0, 50.0]]}


def test_models_files_and_engines_have_marks_of_their_own() -> None:
    rows = [
        speed_row("CLIP", times(1, 4.0)),
        speed_row("m.onnx", times(1, 2.0), n_bytes=9),
        speed_row("m.engine", times(1, 1.0), n_bytes=9),
    ]
    (plot,) = front(*rows)
    marks = {label: points[0][0] for label, points in drawn(plot).items()}
    assert marks == {"in PyTorch": 4.0, "exported file": 2.0, "engine": 1.0}


def test_a_time_in_doubt_is_on_no_front_and_has_no_ratio() -> None:
    busy = speed_row("m.onnx", times(1, 2.0, others_percent=60.0), n_bytes=9)
    known = speed_row("CLIP", times(1, 4.0))
    (plot,) = front(known, busy)
    assert list(drawn(plot)) == ["in PyTorch"]
    assert "1 of 2 models are left out" in plot.caption
    _, *tables, note = speed_blocks(result_of(known, busy), "front")
    ratios = rows_of(tables, "Speed relative to CLIP")
    assert [cells[1:] for cells in ratios] == [
        ["2.00", "1.50", "3.00", "1.0"],
        ["-"] * 3 + ["1.0!"],
    ]
    assert "m.onnx, batch 1: other processes kept 60 % of the cores busy" in " ".join(note.lines)
