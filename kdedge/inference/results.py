"""Results of a classifier for one image: its classes, or the reason why there are none."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar


class ClassScore(NamedTuple):
    """One class of a prediction.

    Attributes:
        class_name: name in the class list.
        score_percent: softmax of the logits, in percent; None for an artifact with head argmax.
    """

    class_name: str
    score_percent: float | None


@dataclass(frozen=True)
class Prediction:
    """Prediction for one image.

    Attributes:
        key: identifies the image, such as its path.
        top: the most likely classes, best first.
        is_none: whether the image shows none of the classes, as far as the artifact can tell.
        known_percent: share of the known images, on which the artifact's limit was fitted, that
            look less like its classes; None if it cannot tell.
    """

    key: str
    top: tuple[ClassScore, ...]
    is_none: bool = False
    known_percent: float | None = None


@dataclass(frozen=True)
class UnreadableImage:
    """An image that cannot be read or decoded.

    Attributes:
        key: identifies the image, such as its path.
        reason: why, as a sentence without a full stop.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class NonFiniteLogits:
    """An image for which the model gives NaN or an infinite logit, such as an overflow in fp16.

    Attributes:
        key: identifies the image, such as its path.
        reason: what was found and what may help, as a sentence without a full stop.
    """

    key: str
    reason: str


Result = Prediction | UnreadableImage | NonFiniteLogits


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
