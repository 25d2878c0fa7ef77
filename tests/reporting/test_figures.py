"""What is drawn, against slow, obvious versions."""

from __future__ import annotations

import re
import runpy
import tracemalloc
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdedge.records.evaluation import CalibrationBin, EvalDetails
from kdedge.reporting import figures
from kdedge.reporting.plots import render
from kdedge.reporting.run_records import TrainingLog
from kdedge.runs.folder import RunFolder


def drawn_shares(details: EvalDetails) -> np.ndarray:
    return np.asarray(figures.confusion(details).axes[0].images[0].get_array())


def test_rows_of_a_drawn_matrix_add_up_to_100_percent() -> None:
    matrix = np.random.default_rng(0).integers(0, 5, (403, 403))
    matrix[:3] = 0
    shares = drawn_shares(_details(matrix))
    step = figures.classes_per_cell(403)
    assert (step, shares.shape) == (3, (135, 135))
    for i, j in ((0, 0), (5, 7), (134, 134)):
        rows = matrix[step * i : step * (i + 1)]
        expected = rows[:, step * j : step * (j + 1)].sum() / max(rows.sum(), 1)
        assert shares[i, j] == pytest.approx(100 * expected)
    assert shares[0].sum() == 0
    np.testing.assert_allclose(shares[1:].sum(axis=1), 100)


def _details(matrix: np.ndarray) -> EvalDetails:
    confusion = tuple((int(i), int(j), int(matrix[i, j])) for i, j in np.argwhere(matrix))
    names = tuple(f"class {number}" for number in range(len(matrix)))
    return EvalDetails(names, int(matrix.sum()), confusion, ())


def test_ten_thousand_classes_need_no_matrix_of_all_their_pairs() -> None:
    names = tuple(f"class {number}" for number in range(10_000))
    details = EvalDetails(names, 2, ((0, 9_999, 1), (9_999, 9_999, 1)), ())
    tracemalloc.start()
    shares = drawn_shares(details)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (shares[0, -1], shares[-1, -1]) == (100, 100)
    assert peak_bytes < 32 << 20  # where all pairs take 763 MiB


def front(points: list[tuple[float, float]]) -> Any:
    """The axes of models with a time and an accuracy each."""
    models = [figures.CostPoint(f"model {i}", "file", *point) for i, point in enumerate(points)]
    return figures.accuracy_against_cost(models, accuracy_name="%", cost_name="ms").axes[0]


def test_points_that_are_close_share_their_numbers() -> None:
    texts = [text.get_text() for text in front([(1.0, 50.0), (1.01, 50.0), (3.0, 60.0)]).texts]
    assert texts[:2] == ["1, 2", "3"]
    assert texts[2].splitlines()[1] == "2  model 1"


@pytest.mark.parametrize(("low", "high"), [(0.004, 0.0095), (1.25, 3.2), (0.6, 1600.0)])
def test_a_time_axis_always_has_ticks(low: float, high: float) -> None:
    axes = front([(1.6 * low, 50.0), (high / 1.6, 60.0)])
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert ticks


def test_a_point_of_an_epoch_is_the_mean_of_its_own_steps() -> None:
    shares = ((2, 1), (4, 3), (6, 7), (8, None), (10, 9))
    steps = tuple({"step": step, "teacher_agreement_percent": share} for step, share in shares)
    log = TrainingLog(steps, ({"step": 4}, {"step": 8}, {"step": 9}))
    _, panel, _ = figures.training_curves(log).axes
    means = {line.get_label(): line.get_xydata() for line in panel.lines}["epochs"]
    # Step 10 is of an epoch that goes on
    np.testing.assert_equal(means, [[4, 2.0], [8, 7.0], [9, np.nan]])


def test_a_calibration_curve_is_accuracy_over_confidence_with_the_share_of_images() -> None:
    bins = (CalibrationBin(1, 20.0, 30.0), CalibrationBin(3, 90.0, 70.0))
    details = EvalDetails(("a", "b"), 4, ((0, 0, 4),), bins)
    curve, share = figures.calibration({"student": details}).axes
    assert curve.lines[1].get_xydata().tolist() == [[20.0, 30.0], [90.0, 70.0]]
    assert share.lines[0].get_xydata().tolist() == [[20.0, 25.0], [90.0, 75.0]]


def test_names_are_no_formulas_and_need_no_letters_of_the_font() -> None:
    names = ("$\\frac{", "a $x$ b", "狐" * 60, "\\$")
    details = EvalDetails(names, 4, tuple((i, i, 1) for i in range(4)), ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = render(lambda: figures.confusion(details), "confusion")
    assert "a $x$ b" in svg


def test_settings_of_matplotlib_stay_as_they_were() -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 33, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        details = EvalDetails(("a",), 1, ((0, 0, 1),), ())
        first = render(lambda: figures.confusion(details), "a")
        assert dict(mpl.rcParams) == before
    assert first == render(lambda: figures.confusion(details), "a")


def test_one_svg_takes_its_colors_from_the_page() -> None:
    models = [figures.CostPoint(kind, kind, 1.0, 50.0) for kind in ("model", "file", "engine")]
    draw = partial(figures.accuracy_against_cost, models, accuracy_name="%", cost_name="ms")
    svg = render(draw, "front")
    for variable in ("text", "muted", "first", "second", "third"):
        assert f"var(--{variable}, #" in svg
    assert not re.search(r"[:\"] ?#[0-9a-f]{6}", svg)  # no color that a dark page would hide


SCRIPT = str(Path(__file__).parents[2] / "benchmarks" / "accuracy_latency.py")


def test_a_runs_models_are_drawn_on_white(
    make_run: Callable[..., RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, picture = make_run(only="bench"), tmp_path / "picture.svg"
    monkeypatch.setattr("sys.argv", [SCRIPT, str(run.path), str(picture)])
    runpy.run_path(SCRIPT, run_name="__main__")
    root = ET.parse(picture).getroot()
    assert {"1  CLIP", "2  i8.onnx", "3  slow.engine"} <= {element.text for element in root.iter()}
    assert [e.get("fill") for e in root if e.tag.endswith("rect")] == ["#ffffff"]
    (run.path / "bench/01.json").unlink()
    with pytest.raises(SystemExit, match="run kdedge bench"):
        runpy.run_path(SCRIPT, run_name="__main__")
