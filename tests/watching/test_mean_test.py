"""Tail sums against SciPy's, and the test's p-values against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from kdedge.watching.mean_test import MeanTest, binomial_tail, f_tail


@pytest.mark.parametrize("k", [1, 2, 5, 8])
@pytest.mark.parametrize("m", [1, 5, 42, 192, 900])
def test_the_f_distributions_tail_is_scipys(k: int, m: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    for ratio in (0.0, 1e-9, 0.01, 0.5, 1, 2, 5, 20, 300, 1e6):
        expected = stats.f.sf(ratio, k, m)
        assert f_tail(ratio, k, m) == pytest.approx(expected, rel=1e-9, abs=1e-290)


@pytest.mark.parametrize(("n", "share"), [(4, 0.05), (20, 0.005), (20, 0.9)])
def test_the_binomial_tail_is_scipys(n: int, share: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    for count in range(n + 1):
        expected = stats.binom.sf(count - 1, n, share)
        assert binomial_tail(count, n, share) == pytest.approx(expected, rel=1e-10)


def test_a_p_value_below_a_tenth_comes_in_a_tenth_of_the_cases() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(3, 3))
    p_values = [
        MeanTest(rng.normal(size=(30, 3)) @ mixing).p_value(rng.normal(size=(4, 3)) @ mixing)
        for _ in range(3000)
    ]
    for level in (0.01, 0.1, 0.5):
        share = np.mean(np.array(p_values) < level)
        assert share == pytest.approx(level, abs=4 * (level * (1 - level) / 3000) ** 0.5)


def test_the_p_value_is_hotellings_in_one_dimension_a_t_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    reference, seen = rng.normal(size=20), rng.normal(0.8, size=6)
    t = (seen.mean() - reference.mean()) / (reference.std(ddof=1) * (1 / 20 + 1 / 6) ** 0.5)
    found = MeanTest(reference[:, None]).p_value(seen[:, None])
    assert found == pytest.approx(2 * stats.t.sf(abs(t), 19), rel=1e-4)


def test_a_value_that_never_varied_does_not_divide_by_zero() -> None:
    rows = np.column_stack([np.zeros(30), np.arange(30.0)])
    assert MeanTest(rows).p_value(rows[:4]) < 1
    assert 0 <= MeanTest(rows).p_value(rows[:4] + np.array([1, 0])) < 1e-6
