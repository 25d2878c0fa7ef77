"""What is drawn, against slow, obvious versions."""

from __future__ import annotations

import itertools
import math
import random
import tracemalloc
import warnings

import numpy as np
import pytest

from kdedge.eval_details import CalibrationBin, EvalDetails
from kdedge.report import figures
from kdedge.report.plots import LIGHT, render
from kdedge.report.records import TrainingLog


def test_rows_of_a_drawn_matrix_add_up_to_100_percent() -> None:
    matrix = np.random.default_rng(0).integers(0, 5, (403, 403))
    matrix[:3] = 0
    shares = figures._shares(_details(matrix))
    step = figures.classes_a_cell(403)
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
    shares = figures._shares(details)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (shares[0, -1], shares[-1, -1]) == (100, 100)
    assert peak_bytes < 2 << 20  # where all pairs take 763 MiB


def test_lines_from_points_to_names_do_not_cross() -> None:
    rng = random.Random(0)
    for n in (1, 2, 7, 16):
        ends = [(rng.random(), rng.choice([0.2, 0.5, rng.random()])) for _ in range(n)]
        places = figures._places_of_names(ends)
        assert len(set(places)) == n
        pairs = list(zip(ends, places, strict=True))
        for (a, b), (c, d) in itertools.combinations(pairs, 2):
            assert not _cross(a, b, c, d)


def _cross(a: tuple, b: tuple, c: tuple, d: tuple) -> bool:
    def side(p: tuple, q: tuple, r: tuple) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < -1e-12 and side(c, d, a) * side(c, d, b) < -1e-12


@pytest.mark.parametrize(("low", "high"), [(0.004, 0.0095), (1.25, 3.2), (0.6, 1600.0)])
def test_a_time_axis_always_has_ticks(low: float, high: float) -> None:
    ticks = figures._ticks(low, high)
    assert ticks
    assert all(low <= tick <= high for tick in ticks)
    assert {f"{tick / 10 ** math.floor(math.log10(tick) + 1e-9):.0f}" for tick in ticks} <= set(
        "125"
    )


def test_a_point_of_an_epoch_is_the_mean_of_its_own_steps() -> None:
    steps = tuple({"step": step, "share": share} for step, share in ((2, 1), (4, 3), (6, 7)))
    steps += ({"step": 8, "share": None}, {"step": 10, "share": 9})
    log = TrainingLog(steps, ({"step": 4}, {"step": 8}, {"step": 9}))
    ends, means = figures._epoch_means(log, "share")
    assert ends == [4, 8, 9]
    np.testing.assert_equal(means, [2.0, 7.0, np.nan])  # step 10 is of an epoch that goes on


def test_a_calibration_curve_is_accuracy_over_confidence_with_the_share_of_images() -> None:
    bins = (CalibrationBin(1, 20.0, 30.0), CalibrationBin(3, 90.0, 70.0))
    details = EvalDetails(("a", "b"), 4, ((0, 0, 4),), bins)
    curve, share = figures.calibration({"student": details})(LIGHT).axes
    assert curve.lines[1].get_xydata().tolist() == [[20.0, 30.0], [90.0, 70.0]]
    assert share.lines[0].get_xydata().tolist() == [[20.0, 25.0], [90.0, 75.0]]


def test_names_are_no_formulas_and_need_no_letters_of_the_font() -> None:
    names = ("$\\frac{", "a $x$ b", "狐" * 60, "\\$")
    details = EvalDetails(names, 4, tuple((i, i, 1) for i in range(4)), ())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = render(figures.confusion(details))
    assert picture.png.startswith(b"\x89PNG")


def test_settings_of_matplotlib_stay_as_they_were() -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 33, "text.parse_math": True}):
        before = dict(mpl.rcParams)
        details = EvalDetails(("a",), 1, ((0, 0, 1),), ())
        first = render(figures.confusion(details))
        assert dict(mpl.rcParams) == before
    assert first == render(figures.confusion(details))
