"""The images of which a classifier is least certain, and which are most worth labeling."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

from kdedge.inference.results import Prediction

_T = TypeVar("_T")


class LeastCertain(Generic[_T]):
    """Keeps the predictions with the lowest score of the best class.

    Args:
        n: number of predictions that are kept.
    """

    def __init__(self, n: int) -> None:
        self._n, self._n_added = n, 0
        self._kept: list[tuple[float, int, Prediction, _T]] = []  # the most certain one first

    def add(self, prediction: Prediction, belonging: _T) -> None:
        """Adds a prediction with a score, and any value that belongs to it."""
        score = prediction.top[0].score_percent
        assert score is not None  # the caller has refused heads without scores
        entry = (-score, -self._n_added, prediction, belonging)
        self._n_added += 1
        if len(self._kept) < self._n:
            heapq.heappush(self._kept, entry)
        else:
            heapq.heappushpop(self._kept, entry)

    def taken(self) -> list[tuple[Prediction, _T]]:
        """Returns the kept predictions, lowest score first; of equal scores, the earlier one."""
        ordered = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        return [(prediction, belonging) for _, _, prediction, belonging in ordered]
