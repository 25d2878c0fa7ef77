"""The drift alarm: have the pictures changed so much that the scores can no longer be trusted?

A window-limited sequential test. After each observation, the means of the last 4, 8, 12, 16 and 20
observations are compared with a reference (Lai 1995, "Sequential changepoint detection in quality
control and dynamical systems", JRSS B 57, section 2.4), each with a test of a known p-value. Three
statistics are tested: the scores of the classes, the confidence, and the share of "none of these".
By the union bound, the expected number of false alarms in a stream that does not change is at most
its number of observations, times the number of tests, times the limit of p. That needs no
independence of the tests, and the limit is set by it.

Frames of a video are not independent. So an observation is the mean of `shot` frames, and a test
takes it to vary as much as a single image of the reference. That is right where all these frames
show one thing, and cautious where they show several. A scene that stays as it was is not counted
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from kdedge.watching.frame import Thumbnail, is_changed
from kdedge.watching.mean_test import MeanTest, binomial_tail

FALSE_ALARMS_PER_FRAME = 2e-6
"""The bound on the expected number: two in a million frames."""

MIN_REFERENCE = 100
"""With fewer images the test of a mean is too weak to see a change within 500 frames."""

_N_LEARNED = 200
_WINDOWS = (4, 8, 12, 16, 20)
_N_DIRECTIONS = 8
_IMAGES_PER_DIRECTION = 25
_OVER = 0.05
_LEAST = 1e-300
_N_NAMED = 3

Statistic = Literal["classes", "confidence", "none"]


@dataclass(frozen=True)
class Scored:
    """What the classifier said of one frame.

    Attributes:
        scores: [C], sum 1.
        is_none: it shows none of the classes.
    """

    scores: npt.NDArray[np.float64]
    is_none: bool = False


@dataclass(frozen=True)
class Summary:
    """Several frames in numbers for people.

    Attributes:
        mean_score_percent: mean score of the best class.
        none_percent: share of frames that show none of the classes.
        class_percent: share of each class among the best ones, [C].
    """

    mean_score_percent: float
    none_percent: float
    class_percent: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Drift:
    """A statistic has left its reference, or has come back to it.

    Attributes:
        statistic: which one.
        is_over: it is back.
        p_value: of the test that saw it.
        n_frames: number of frames in the window of that test.
        reference: the reference in numbers.
        now: those frames in numbers.
    """

    statistic: Statistic
    is_over: bool
    p_value: float
    n_frames: int
    reference: Summary
    now: Summary


class Reference:
    """What frames are like where nothing has changed.

    The values of the statistics are ranks in the reference, as normal scores (van der Waerden 1952,
    "Order tests for the two-sample problem"). So a test of means may take them as normal, however
    the scores of the classes are distributed, and a single odd frame weighs little.

    Args:
        scored: independent images, at least 20.
    """

    def __init__(self, scored: Sequence[Scored]) -> None:
        self.n_images = len(scored)
        self.summary = summary(scored)
        scores = np.stack([one.scores for one in scored])
        logs = _log_scores(scores)
        self._center = logs.mean(axis=0)
        n_directions = min(_N_DIRECTIONS, logs.shape[1] - 1, len(logs) // _IMAGES_PER_DIRECTION)
        self._directions = np.linalg.svd(logs - self._center, full_matrices=False)[2][:n_directions]
        self._ranks: dict[Statistic, list[_Ranks]] = {}
        self.tests: dict[Statistic, MeanTest] = {}
        for name in _MEANS if logs.shape[1] > 1 else ():
            values = self._raw(scores, name)
            self._ranks[name] = [_Ranks(column) for column in values.T]
            self.tests[name] = MeanTest(self.values(scored, name))
        n_none = sum(one.is_none for one in scored)
        self.none_share = (n_none + 1) / (len(scored) + 2)  # Laplace's estimate: never 0

    def values(self, frames: Sequence[Scored], name: Statistic) -> npt.NDArray[np.float64]:
        """The values of a statistic, [n, k]."""
        if name == "none":
            return np.array([[float(one.is_none)] for one in frames])
        raw = self._raw(np.stack([one.scores for one in frames]), name)
        return np.stack(
            [ranks(column) for ranks, column in zip(self._ranks[name], raw.T, strict=True)], axis=1
        )

    def _raw(self, scores: npt.NDArray[np.float64], name: Statistic) -> npt.NDArray[np.float64]:
        """[n, C] -> [n, k].

        `classes`: the main directions in which the reference's log scores vary.
        `confidence`: log odds of the best class, and how far the log scores are spread.
        """
        logs = _log_scores(scores)
        if name == "classes":
            directed: npt.NDArray[np.float64] = (logs - self._center) @ self._directions.T
            return directed
        ordered = np.sort(scores, axis=1)
        others = np.maximum(ordered[:, :-1].sum(axis=1), _LEAST)
        odds = np.log(np.maximum(ordered[:, -1], _LEAST)) - np.log(others)
        return np.stack([odds, logs.std(axis=1)], axis=1)


class _Ranks:
    """Normal scores of values by their place among known ones, which end with the known ones."""

    def __init__(self, known: npt.NDArray[np.float64]) -> None:
        places = (np.arange(len(known)) + 0.5) / len(known)
        normal = np.array([NormalDist().inv_cdf(place) for place in places])
        self._known, counts = np.unique(known, return_counts=True)
        ends = np.cumsum(counts)
        sums = np.concatenate([[0.0], np.cumsum(normal)])
        self._scores = (sums[ends] - sums[ends - counts]) / counts

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        scores: npt.NDArray[np.float64] = np.interp(values, self._known, self._scores)
        return scores


@dataclass(frozen=True)
class _Observation:
    frames: list[Scored]
    values: dict[Statistic, npt.NDArray[np.float64]]


_MEANS: tuple[Statistic, ...] = ("classes", "confidence")


class DriftMonitor:
    """Raises an alarm when frames are no longer like the reference.

    Args:
        reference: None to learn it from the first observations of the stream.
        shot: frames of one observation.
        has_none: the artifact can say that an image shows none of its classes.
        n_learned: observations to learn from.
    """

    def __init__(
        self,
        reference: Reference | None,
        *,
        shot: int,
        has_none: bool = False,
        n_learned: int = _N_LEARNED,
    ) -> None:
        self.reference = reference
        self._shot, self._n_learned = shot, n_learned
        self._statistics: tuple[Statistic, ...] = (*_MEANS, *(("none",) if has_none else ()))
        self._limit = FALSE_ALARMS_PER_FRAME * shot / (len(_WINDOWS) * len(self._statistics))
        self._learned: list[Scored] = []
        self._frames: list[Scored] = []
        self._last: deque[_Observation] = deque(maxlen=max(_WINDOWS))
        self._scene: Thumbnail | None = None
        self._raised: set[Statistic] = set()

    def add(self, scored: Scored, small: Callable[[], Thumbnail]) -> list[Drift]:
        """Adds a frame; returns what has changed with it.

        Args:
            scored: its scores.
            small: gives its thumbnail, which few frames need.
        """
        self._frames.append(scored)
        if len(self._frames) < self._shot:
            return []
        frames, self._frames = self._frames, []
        picture = small()
        if not is_changed(self._scene, picture):
            return []
        self._scene = picture
        if self.reference is None:
            self._learned.append(scored)  # one frame: the mean of several varies less
            if len(self._learned) == self._n_learned:
                self.reference, self._learned = Reference(self._learned), []
            return []
        names = [
            name for name in self._statistics if name == "none" or name in self.reference.tests
        ]
        values = {name: self.reference.values(frames, name).mean(axis=0) for name in names}
        self._last.append(_Observation(frames, values))
        return [found for name in names for found in self._test(name, self.reference)]

    def _test(self, name: Statistic, reference: Reference) -> Iterator[Drift]:
        p_values = {n: self._p_value(name, reference, n) for n in _WINDOWS if n <= len(self._last)}
        if name in self._raised:
            if max(_WINDOWS) in p_values and min(p_values.values()) > _OVER:
                self._raised.discard(name)
                yield self._drift(name, reference, max(_WINDOWS), p_values, is_over=True)
            return
        for n, p_value in p_values.items():
            if p_value < self._limit:
                self._raised.add(name)
                yield self._drift(name, reference, n, p_values, is_over=False)
                return

    def _p_value(self, name: Statistic, reference: Reference, n: int) -> float:
        rows = np.stack([one.values[name] for one in list(self._last)[-n:]])
        if name == "none":
            return binomial_tail(int((rows > 0.5).sum()), n, reference.none_share)
        return reference.tests[name].p_value(rows)

    def _drift(
        self,
        name: Statistic,
        reference: Reference,
        n: int,
        p_values: dict[int, float],
        *,
        is_over: bool,
    ) -> Drift:
        frames = [frame for one in list(self._last)[-n:] for frame in one.frames]
        return Drift(name, is_over, p_values[n], len(frames), reference.summary, summary(frames))


def summary(frames: Sequence[Scored]) -> Summary:
    """Frames in numbers for people."""
    best = [int(one.scores.argmax()) for one in frames]
    counts = np.bincount(best, minlength=len(frames[0].scores))
    return Summary(
        100 * float(np.mean([one.scores.max() for one in frames])),
        100 * float(np.mean([one.is_none for one in frames])),
        100 * counts / len(frames),
    )


def most_changed(drift: Drift, class_names: Sequence[str]) -> list[tuple[str, float, float]]:
    """The classes whose share has changed most: name, percent in the reference, percent now."""
    before, now = drift.reference.class_percent, drift.now.class_percent
    order = np.argsort(-np.abs(now - before), kind="stable")[:_N_NAMED]
    return [(class_names[c], float(before[c]), float(now[c])) for c in order]


def _log_scores(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """[n, C] -> [n, C], the logits less their mean: that is all of them that scores hold."""
    logs: npt.NDArray[np.float64] = np.log(np.maximum(scores, _LEAST))
    logs -= logs.mean(axis=1, keepdims=True)
    return logs
