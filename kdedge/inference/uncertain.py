"""The images of which a classifier is least certain, and which are most worth labeling."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeVar

from kdedge.inference.results import Prediction, Result

_T = TypeVar("_T")


def least_certain(results: Iterable[tuple[Result, _T]], n: int) -> Iterator[tuple[Result, _T]]:
    """Finds the predictions with the lowest score of the best class, lowest first.

    Args:
        results: results with scores, each with any other value; only `n` are kept at a time.
        n: number of predictions; at most all.

    Yields:
        Results that are not predictions, in their order; then the predictions.
    """
    kept: list[tuple[float, int, tuple[Result, _T]]] = []  # the most certain one first
    for order, one in enumerate(results):
        result = one[0]
        if not isinstance(result, Prediction):
            yield one
            continue
        score = result.top[0].score_percent
        assert score is not None  # the caller has refused heads without scores
        entry = (-score, -order, one)
        if len(kept) < n:
            heapq.heappush(kept, entry)
        else:
            heapq.heappushpop(kept, entry)
    for _, _, one in sorted(kept, key=lambda entry: entry[:2], reverse=True):
        yield one
