"""Tables of speed and the front, on figures that are easy to tell apart."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge.records.evaluation import EvalDetails, EvalResult
from kdedge.records.speed import Accuracy, named_rows, pareto_front
from kdedge.reporting.accuracy import accuracy_table, class_table, confusion_table
from kdedge.reporting.speed import front_plots, speed_blocks


def rows_of(blocks: Any, title: str) -> Any:
    return next(block.rows for block in blocks if block.title.startswith(title))


def test_every_figure_has_its_column(speed: ModuleType) -> None:
    row = speed.row(
        "m.onnx",
        speed.measurement(1, 4.0, watts=10.0),
        speed.measurement(8, 16.0),
        speed.measurement(1, 40.0, inputs="image file", watts=20.0),
        n_bytes=7_000_000,
    )
    blocks = speed_blocks(speed.result(row), "front")
    assert rows_of(blocks, "Million parameters") == [["m.onnx", "86.0", "7", "500", "17.5", "35.0"]]
    assert rows_of(blocks, "Latency, ms per call at batch 1") == [["m.onnx", "4", "4.4", "4.8"]]
    assert rows_of(blocks, "Speed relative to m.onnx") == [
        ["m.onnx", "1.00", "0.95", "1.05", "1.0"]
    ]
    assert rows_of(blocks, "FPS: images per second") == [["m.onnx", "250", "500"]]
    assert rows_of(blocks, "End to end") == [["m.onnx", "40.0", "44.0", "48.0", "25.0"]]
    assert rows_of(blocks, "Mean power") == [["m.onnx", "1", "10.0", "0.04"]]


def compared(percent: float) -> Accuracy:
    return Accuracy(None, None, None, percent, 99.0, "line3/02, less the drop", 2000)


@pytest.fixture
def front(speed: ModuleType) -> Any:
    """Draws the plots of rows."""
    return lambda *rows: front_plots(named_rows(speed.result(*rows)), "front")


def drawn(plot: Any) -> dict[str, list[list[float]]]:
    """The points of a plot by kind of model: ms and percent."""
    (axes,) = plot.draw().axes
    return {mark.get_label(): mark.get_offsets().tolist() for mark in axes.collections}


def test_the_front_is_at_the_smallest_batch_and_of_the_accuracy_that_all_have(
    front: Any, speed: ModuleType
) -> None:
    trained = speed.row("CLIP", speed.measurement(1, 4.0), speed.measurement(8, 5.0))
    (plot,) = front(trained)
    assert plot.title == "Accuracy against latency: harmonic mean of base and novel"
    assert drawn(plot) == {"in PyTorch": [[4.0, 64.77]]}
    file = speed.row("m.onnx", speed.measurement(1, 2.0), accuracy=compared(50.0), n_bytes=9)
    unknown = speed.row("n.onnx", speed.measurement(1, 1.0), accuracy=None, n_bytes=9)
    late = speed.row("o.onnx", speed.measurement(8, 1.0), n_bytes=9)
    (plot,) = front(trained, file, unknown, late)
    assert plot.title == "Accuracy against latency: accuracy over all names"
    assert "2 of 4 models are left out" in plot.caption
    assert drawn(plot) == {"in PyTorch": [[4.0, 55.5]], "exported file": [[2.0, 50.0]]}


def test_accuracies_of_other_images_have_a_plot_of_their_own(front: Any, speed: ModuleType) -> None:
    clip = speed.row("CLIP", speed.measurement(1, 4.0))
    other = replace(compared(50.0), n_images=500)
    first, second = front(
        clip, speed.row("m.onnx", speed.measurement(1, 2.0), accuracy=other, n_bytes=9)
    )
    assert (first.name, second.name) == ("front", "front-2")
    assert "the same 2,000 images (line3/02)" in first.caption
    assert drawn(first) == {"in PyTorch": [[4.0, 64.77]]}
    assert drawn(second) == {"exported file": [[2.0, 50.0]]}


def test_models_files_and_engines_have_marks_of_their_own(front: Any, speed: ModuleType) -> None:
    rows = [
        speed.row("CLIP", speed.measurement(1, 4.0)),
        speed.row("m.onnx", speed.measurement(1, 2.0), n_bytes=9),
        speed.row("m.engine", speed.measurement(1, 1.0), n_bytes=9),
    ]
    (plot,) = front(*rows)
    marks = {label: points[0][0] for label, points in drawn(plot).items()}
    assert marks == {"in PyTorch": 4.0, "exported file": 2.0, "engine": 1.0}


def test_a_time_in_doubt_is_on_no_front(front: Any, speed: ModuleType) -> None:
    busy = speed.row("m.onnx", speed.measurement(1, 2.0, others_percent=60.0), n_bytes=9)
    known = speed.row("CLIP", speed.measurement(1, 4.0))
    (plot,) = front(known, busy)
    assert list(drawn(plot)) == ["in PyTorch"]
    assert "1 of 2 models are left out" in plot.caption


POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12)


@given(points=POINTS)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    front = pareto_front(points)
    slow = {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}
    assert set(front) == slow
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


DETAILS = EvalDetails(
    ("cat", "dog", "fox"), 12, ((0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 1, 5), (1, 2, 1)), ()
)


def evaluated(per_class: dict[str, float | None]) -> EvalResult:
    return EvalResult("all", "last", 12, 50.0, None, None, None, 1.0, per_class)


def test_a_confusion_counts_among_the_images_of_its_class() -> None:
    # 4 cats, 8 dogs; and no fox
    table = confusion_table("student", DETAILS)
    assert table.rows == [
        ["dog", "cat", "2 of 8", "25.00"],
        ["cat", "dog", "1 of 4", "25.00"],
        ["dog", "fox", "1 of 8", "12.50"],
    ]


def test_classes_have_their_images_and_the_lowest_is_first() -> None:
    own = evaluated({"cat": 75.0, "dog": 62.5, "fox": None})
    teacher, plain = evaluated({"cat": 80.0}), evaluated({"cat": 50.0, "dog": 90.0})
    models = {"student": own, "teacher": teacher, "zero-shot CLIP": plain}
    table = class_table(models, DETAILS)
    assert table.header == ["class", "images", "student", "teacher", "zero-shot CLIP"]
    assert table.rows == [
        ["dog", "8", "62.50", "-", "90.00"],
        ["cat", "4", "75.00", "80.00", "50.00"],
    ]
    assert "Mean over these classes: 68.75 %" in table.caption
    assert class_table(models, None, least=1).rows == [["dog", "62.50", "-", "90.00"]]


def test_always_the_most_frequent_class_is_what_every_model_must_beat() -> None:
    own = replace(evaluated({"cat": 0.0, "dog": 75.0}), largest_class_percent=66.6)
    table = accuracy_table([("student", own)])
    assert table.header == ["model", "accuracy", "mean over classes", "calibration error"]
    assert table.rows == [
        ["student", "50.00", "37.50", f"{own.ece_percent:.2f}"],
        ["always the most frequent class", "66.60", "50.00", "-"],
    ]
