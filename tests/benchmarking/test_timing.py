"""Interleaved timing: shares, rounds, ratios, failures."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge.benchmarking import timing
from kdedge.benchmarking.timing import Timed, TimingPlan, measure, percentile, summarize
from kdedge.errors import SetupError
from kdedge.runtime.machine import Contention


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@given(
    call_ms=st.floats(0.001, 1e6),
    seconds=st.floats(0.01, 10),
    n_calls=st.integers(3, 100),
)
def test_a_call_is_repeated_for_long_enough_and_not_for_too_long(
    call_ms: float, seconds: float, n_calls: int
) -> None:
    plan = TimingPlan(seconds=seconds, n_calls=n_calls, most_seconds=10 * seconds)
    n = plan.calls_for(call_ms)
    assert n >= 3
    total_s = n * call_ms / 1000
    assert n == 3 or total_s <= plan.most_seconds * (1 + 1e-9)
    is_enough = n >= n_calls and total_s >= seconds * (1 - 1e-9)
    assert is_enough or (n + 1) * call_ms / 1000 > plan.most_seconds * (1 - 1e-9) or n == 3


def test_every_round_has_a_turn_of_every_model_in_order() -> None:
    ran: list[str] = []

    def call(name: str) -> timing.TimedCall:
        def one() -> float:
            ran.append(name)
            return 100.0

        return one

    plan = TimingPlan(seconds=1.0, n_calls=11, most_seconds=10.0, n_rounds=3)
    turns: list[str] = []
    timed = measure({"a": call("a"), "b": call("b")}, plan, after_turn=turns.append)
    assert turns == ["a", "b"] * 3
    assert [len(one) for one in timed["a"].rounds] == [4, 4, 3]
    switches = [name for name, _ in itertools.groupby(ran)]
    assert switches == ["a", "b"] * 4  # to warm up, then three rounds


def test_a_model_with_few_calls_has_fewer_rounds_and_none_is_empty() -> None:
    plan = TimingPlan(seconds=1.0, n_calls=20, most_seconds=1.0, n_rounds=5)
    timed = measure({"slow": lambda: 900.0, "quick": lambda: 50.0}, plan)
    assert [len(one) for one in timed["slow"].rounds] == [1, 1, 1]
    assert [len(one) for one in timed["quick"].rounds] == [4, 4, 4, 4, 4]


def test_one_that_fails_in_the_middle_keeps_what_it_had_and_the_others_go_on() -> None:
    answers = iter([100.0] * 12)

    def fails() -> float:
        try:
            return next(answers)
        except StopIteration:
            raise SetupError("the GPU has gone") from None

    plan = TimingPlan(seconds=0.1, n_calls=12, n_rounds=3)
    timed = measure({"bad": fails, "good": lambda: 100.0}, plan)
    assert isinstance(timed["bad"].problem, SetupError)
    assert timed["bad"].problem.__traceback__ is None  # it would hold the failed call's memory
    assert len(timed["bad"].rounds) == 1
    assert timed["good"].problem is None
    assert len(timed["good"].samples) == 12


def test_the_quickest_call_of_the_warm_up_decides_how_many_are_timed() -> None:
    answers = iter([150.0, 10.0, 10.0])  # the first call of a model is slow
    plan = TimingPlan(seconds=0.1, n_calls=3, n_rounds=1)
    timed = measure({"a": lambda: next(answers, 10.0)}, plan)
    assert len(timed["a"].samples) == 10


def test_a_bug_is_no_models_failure() -> None:
    def broken() -> float:
        raise AssertionError

    with pytest.raises(AssertionError):
        measure({"broken": broken}, TimingPlan())


def test_power_counts_only_while_a_timed_turn_lasts() -> None:
    class Recorded:
        inside = False

        @contextlib.contextmanager
        def during(self, samples: list[float]) -> Iterator[None]:
            self.inside = True
            yield
            self.inside = False
            samples.append(7.0)

    power = Recorded()
    seen: list[bool] = []

    def call() -> float:
        seen.append(power.inside)
        return 100.0

    timed = measure({"a": call}, TimingPlan(seconds=0.1, n_calls=4, n_rounds=2), power=power)
    assert sum(seen) == 4 < len(seen)
    assert timed["a"].power == [7.0, 7.0]


def test_what_others_took_is_watched_in_timed_turns_alone() -> None:
    """Half a core of two in the first round, none in the second; 8 lost cores in two seconds."""
    watched: list[int] = []
    others = iter([0.5, 0.0])
    n_calls = 0

    def watch() -> Callable[[], Contention]:
        began = n_calls
        other = next(others)

        def since() -> Contention:
            watched.append(n_calls - began)
            return Contention(1.0, 2, other)

        return since

    def call() -> float:
        nonlocal n_calls
        n_calls += 1
        return 100.0

    plan = TimingPlan(seconds=0.1, n_calls=6, n_rounds=2)
    timed = measure({"a": call}, plan, watch=watch)["a"]
    assert watched == [3, 3]
    found = summarize(timed, batch=1, inputs="on device", baseline=None)
    assert found.others_percent == 12.5
    timed.contention = [Contention(0.1, 2, 0.1)] * 2
    found = summarize(timed, batch=1, inputs="on device", baseline=None)
    assert found.others_percent is None  # too short to say


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=300), st.integers(1, 100))
def test_a_percentile_is_the_smallest_sample_that_so_many_do_not_exceed(
    samples: list[float], percent: int
) -> None:
    found = percentile(samples, percent)
    enough = [
        x for x in sorted(samples) if 100 * sum(s <= x for s in samples) >= percent * len(samples)
    ]
    assert found == enough[0]


def test_a_summary_is_the_plain_statistics() -> None:
    baseline = Timed(rounds=[[4.0, 6.0, 5.0], [9.0, 9.0]])
    timed = Timed(rounds=[[1.0, 3.0, 2.0], [2.0, 4.0]], power=[8.0, 12.0])
    found = summarize(timed, batch=8, inputs="on device", baseline=baseline)
    samples = np.array([1.0, 3.0, 2.0, 2.0, 4.0])
    assert found.p50_ms == np.median(samples)
    assert (found.p90_ms, found.p99_ms) == (4.0, 4.0)
    assert found.mean_ms == pytest.approx(samples.mean())
    assert found.cv_percent == pytest.approx(100 * samples.std() / samples.mean())
    assert found.images_per_second == pytest.approx(8 / (samples.mean() / 1000))
    ratios = [5.0 / 2.0, 9.0 / 3.0]
    assert (found.ratio_low, found.ratio_high) == (min(ratios), max(ratios))
    assert found.ratio == statistics.median(ratios)
    assert found.joules_per_image == pytest.approx(10.0 / found.images_per_second)


def test_nothing_timed_is_no_summary() -> None:
    assert summarize(Timed(), batch=1, inputs="on device", baseline=None) is None
