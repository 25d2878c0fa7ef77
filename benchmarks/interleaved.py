"""Latencies of several models in one process, so that drift of the machine hits all alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdedge.benchmarking.timing import TimingPlan, host_timed, measure

N_CALLS = 10


def interleaved(calls: dict[str, Callable[[], Any]], n_rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call: in each round ten of every kind in a row, as `kdedge bench` does.

    Raises:
        Exception: what a call raised.
    """
    plan = TimingPlan(seconds=0.0, n_calls=N_CALLS * n_rounds, most_seconds=1e9, n_rounds=n_rounds)
    timed = measure({name: host_timed(call) for name, call in calls.items()}, plan)
    for one in timed.values():
        if one.problem is not None:
            raise one.problem
    return {name: one.samples for name, one in timed.items()}


def by_round(before: list[float], after: list[float]) -> list[float]:
    """Each round's ratio of the smallest times."""
    rounds = range(0, len(before), N_CALLS)
    return [min(before[i:][:N_CALLS]) / min(after[i:][:N_CALLS]) for i in rounds]
