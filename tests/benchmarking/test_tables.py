"""The measured table as text."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest

from kdedge.benchmarking.tables import as_markdown, make_tables, notes
from kdedge.records.speed import Accuracy


def grid(result: Any, start: str) -> list[list[str]]:
    return next(g.rows for g in make_tables(result) if g.title.startswith(start))


def test_gflops_are_twice_the_gmacs_and_class_texts_are_counted_with_the_call(
    speed: ModuleType,
) -> None:
    paper = speed.row("CoOp", speed.measurement(), protocol="paper", gmacs_call=1183.0)
    (cells,) = grid(speed.result(paper), "Million parameters")
    assert [cells[0], *cells[4:]] == ["CoOp, paper", "1,200", "2,401"]
    assert paper.gmacs(100) == 17.5 + 11.83


def test_the_first_table_has_a_line_a_model(speed: ModuleType) -> None:
    row = speed.row("CLIP", speed.measurement(1, 10.0), speed.measurement(8, 40.0))
    unknown = speed.row("m.onnx", accuracy=None, gmacs_image=None)
    first = make_tables(speed.result(row, unknown))[0]
    assert first.rows == [
        ["CLIP", "35.0", "10.0", "200", "1.00", "55.50"],
        ["m.onnx", "-", "-", "-", "-", "-"],
    ]


def test_accuracies_of_other_images_have_a_table_of_their_own(speed: ModuleType) -> None:
    whole = Accuracy(None, None, None, 42.05, None, "line3/02", 2000, "all")
    some = Accuracy(None, None, None, 40.8, 100.0, "500 of 2000 images", 500, "some")
    one = speed.result(speed.row("CLIP", accuracy=whole), speed.row("PromptKD", accuracy=whole))
    assert "different sets" not in " ".join(notes(one))
    result = speed.result(speed.row("CLIP", accuracy=whole), speed.row("m.onnx", accuracy=some))
    assert "! Accuracies are on 2 different sets of images" in " ".join(notes(result))
    for images, model in (("2,000", "CLIP"), ("500", "m.onnx")):
        (cells,) = grid(result, f"Accuracy, top-1 in percent, on {images} images")
        assert cells[0] == model


def test_a_files_size_is_in_megabytes_and_memory_in_mebibytes(speed: ModuleType) -> None:
    row = speed.row("m.onnx", n_bytes=3_500_000)
    (cells,) = grid(speed.result(row), "Million parameters")
    assert cells[:4] == ["m.onnx", "86.0", "3.5", "500"]


def test_latency_and_fps_are_of_the_batches_asked_for(speed: ModuleType) -> None:
    row = speed.row("CLIP", speed.measurement(1, 10.0), speed.measurement(8, 40.0))
    other = speed.row("CoOp", speed.measurement(1, 20.0))
    result = speed.result(row, other)
    assert grid(result, "Latency, ms per call at batch 1")[0] == ["CLIP", "10.0", "11.0", "12.0"]
    assert grid(result, "Speed relative to CLIP")[0] == ["CLIP", "1.00", "0.95", "1.05", "1.0"]
    assert grid(result, "FPS") == [["CLIP", "100", "200"], ["CoOp", "50.0", "-"]]


DOUBTS = [
    ({"others_percent": 55.0}, "other processes kept 55 % of the cores busy"),
    ({"p90_ms": 35.0}, "a tenth of its calls took 3.5 times the median or longer"),
]


@pytest.mark.parametrize(("what", "why"), DOUBTS)
def test_a_time_in_doubt_is_marked_in_its_row_and_not_ranked(
    speed: ModuleType, what: dict[str, float], why: str
) -> None:
    quiet = {"others_percent": 9.0, "p90_ms": 19.0}
    steady = speed.row("CLIP", speed.measurement(**quiet))
    busy = speed.row("m.onnx", speed.measurement(ratio=77.58, **(quiet | what)))
    result = speed.result(steady, busy)
    assert [cells[2:5] for cells in make_tables(result)[0].rows] == [
        ["10.0", "100", "1.00"],
        ["10.0!", "100!", "-"],
    ]
    assert grid(result, "Speed relative") == [
        ["CLIP", "1.00", "0.95", "1.05", "1.0"],
        ["m.onnx", "-", "-", "-", "1.0!"],
    ]
    assert "77.58" not in as_markdown(result)
    text = "\n".join(notes(result))
    assert f"! 1 of 2 times are in doubt and get no ratio (m.onnx, batch 1: {why})" in text
    assert "doubt" not in "\n".join(notes(speed.result(steady)))


def test_nothing_is_ranked_against_a_baseline_in_doubt(speed: ModuleType) -> None:
    busy = {"others_percent": 55.0}
    first = speed.row("CLIP", speed.measurement(1, **busy), speed.measurement(8))
    other = speed.row("m.onnx", speed.measurement(1, ratio=766.0), speed.measurement(8))
    result = speed.result(first, other)
    assert grid(result, "Speed relative")[1] == ["m.onnx", "-", "-", "-", "1.0"]
    assert [result.has_rank(found) for found in other.measurements] == [False, True]


def test_throttling_failures_and_what_is_left_out_are_said(speed: ModuleType) -> None:
    row = speed.row("m.engine", speed.measurement(), problem="the GPU has gone", gate="missed")
    device = {"cpu": "A CPU", "cpu_cores": 2, "throttled": True}
    text = "\n".join(notes(speed.result(row, device=device, left_out={"teacher": "it is gone"})))
    assert "was throttled during the measurement" in text
    assert "m.engine ended early: the GPU has gone" in text
    assert "Missed its gate at export: m.engine" in text
    assert "Left out: teacher: it is gone" in text


def width(rows: Sequence[Sequence[str]]) -> int:
    """Of a table on a terminal, whose columns stand two spaces apart."""
    columns = list(zip(*rows, strict=True))
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def test_sixty_columns_are_enough(speed: ModuleType) -> None:
    wide = {"cv_percent": 12.3, "ratio": 12.34, "ratio_low": 11.11, "ratio_high": 13.33}
    rows = [
        speed.row("Zero-shot CLIP", speed.measurement(1, 123.4)),
        speed.row("model.int8-cpu.onnx", speed.measurement(1, 0.123, **wide), n_bytes=92_000_000),
    ]
    for one in make_tables(speed.result(*rows)):
        assert width([one.header, *one.rows]) <= 60, one.title


def test_rows_of_several_runs_name_their_recipe(speed: ModuleType) -> None:
    rows = [
        speed.row("CLIP", speed.measurement()),
        speed.row("CLIP", speed.measurement(), source="b"),
    ]
    assert [cells[0] for cells in grid(speed.result(*rows), "FPS")] == ["line3: CLIP", "b: CLIP"]
