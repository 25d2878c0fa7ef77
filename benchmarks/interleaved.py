"""Latencies of several models in one process, so that drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def interleaved(calls: dict[str, Callable[[], Any]], n_rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call: in each round ten of every kind in a row, after three unmeasured.

    A row starts after a pause: ONNX Runtime's threads wait in a loop for a while after a call, and
    would slow down whatever comes next. The first calls after a pause are slow by themselves.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(n_rounds):
        for name, call in calls.items():
            time.sleep(0.05)
            for number in range(13):
                began = time.perf_counter()
                call()
                if number >= 3:
                    taken[name].append(1000 * (time.perf_counter() - began))
    return taken
