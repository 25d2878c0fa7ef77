"""The drift alarm: detects when images have changed so much that scores cannot be trusted.

A window-limited sequential test. After each observation, the means of the last 4, 8, 12, 16 and 20
observations are compared with a reference (Lai 1995, "Sequential changepoint detection in quality
control and dynamical systems", JRSS B 57, section 2.4), each with a test of a known p-value. Three
statistics are tested: the scores of the classes, the confidence, and the share of "none of these".
By the union bound, the expected number of false alarms in a stream that does not change is at most
its number of observations, times the number of tests, times the limit of p. This bound sets the
limit; it does not assume that the tests are independent.

Frames of a video are not independent. So an observation is the mean of several frames, and a
test assumes that it varies as much as a single image of the reference. That is exact if all these
frames show one thing, and cautious if they show several. A scene that has not changed is not
observed again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

# Bound on the expected number of false alarms: two in a million frames
FALSE_ALARMS_PER_FRAME = 2e-6

# With fewer images the test of a mean is too weak to detect a change within 500 frames
MIN_REFERENCE = 100

_N_LEARNED = 200  # observations of a reference from the stream
_WINDOWS = (4, 8, 12, 16, 20)  # observations
_N_DIRECTIONS = 8
_IMAGES_PER_DIRECTION = 25
_OVER = 0.05  # a drift is over when all p-values are above this
_LEAST = 1e-300
_MAX_NAMED = 3
# A scene has changed if the brightness of 16 x 16 parts differs by 6 of 255 on average
_SIDE = 16
_CHANGED = 6.0

Statistic = Literal["classes", "confidence", "none"]
_MEANS: tuple[Statistic, ...] = ("classes", "confidence")
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoredFrame:
    """Scores of one frame.

    Attributes:
        scores: [C], sum 1.
        is_none: whether the frame shows none of the classes.
    """

    scores: Array
    is_none: bool = False


@dataclass(frozen=True)
class ScoreSummary:
    """Mean score and shares of several frames.

    Attributes:
        mean_score_percent: mean score of the best class.
        none_percent: share of frames that show none of the classes.
        class_percent: [C], share of frames with each class as the best one.
    """

    mean_score_percent: float
    none_percent: float
    class_percent: Array

    @classmethod
    def of(cls, frames: Sequence[ScoredFrame]) -> ScoreSummary:
        """Summarizes frames."""
        best = [int(np.argmax(frame.scores)) for frame in frames]
        n_classes = len(frames[0].scores)
        return cls(
            mean_score_percent=100 * float(np.mean([np.max(frame.scores) for frame in frames])),
            none_percent=100 * float(np.mean([frame.is_none for frame in frames])),
            class_percent=100 * np.bincount(best, minlength=n_classes) / len(frames),
        )


class ChangedShare(NamedTuple):
    """The share of frames with one class as the best one, in the reference and now."""

    class_name: str
    before_percent: float
    now_percent: float


@dataclass(frozen=True)
class Drift:
    """The alarm that a statistic has left its reference, or the end of that alarm.

    Attributes:
        statistic: the statistic.
        is_over: whether the statistic has come back to its reference.
        p_value: p-value of the test that detected the change.
        n_frames: number of frames in the window of that test.
        reference: scores of the reference.
        now: scores of the frames in the window.
    """

    statistic: Statistic
    is_over: bool
    p_value: float
    n_frames: int
    reference: ScoreSummary
    now: ScoreSummary

    def most_changed(self, class_names: Sequence[str]) -> list[ChangedShare]:
        """The classes whose share has changed most."""
        before, now = self.reference.class_percent, self.now.class_percent
        order = np.argsort(-np.abs(now - before), kind="stable")[:_MAX_NAMED]
        return [ChangedShare(class_names[c], float(before[c]), float(now[c])) for c in order]


class DriftReference:
    """The scores of images before any change.

    The values of the statistics are ranks in the reference, as normal scores (van der Waerden 1952,
    "Order tests for the two-sample problem"). So a test of means may treat them as normal for any
    distribution of the scores, and a single odd frame has little weight.

    Args:
        scored: scores of independent images, at least 20.

    Attributes:
        n_images: number of images.
        summary: mean score and shares of the reference images.
        statistics: statistics of scores that can be tested.
    """

    def __init__(self, scored: Sequence[ScoredFrame]) -> None:
        self.n_images = len(scored)
        self.summary = ScoreSummary.of(scored)
        scores = np.stack([image.scores for image in scored])
        logs = _log_scores(scores)
        self._center = logs.mean(axis=0)
        n_directions = min(_N_DIRECTIONS, logs.shape[1] - 1, len(logs) // _IMAGES_PER_DIRECTION)
        _, _, directions = np.linalg.svd(logs - self._center, full_matrices=False)
        self._directions = directions[:n_directions]
        self.statistics = _MEANS if logs.shape[1] > 1 else ()
        self._normal = dict[Statistic, list[_NormalScores]]()
        for name in self.statistics:
            columns = self._raw_values(scores, name).T
            self._normal[name] = [_NormalScores(column) for column in columns]
        self._means = dict[Statistic, Array]()
        self._precisions = dict[Statistic, Array]()
        for name in self.statistics:
            values = self.values(scored, name)
            covariance = np.atleast_2d(np.cov(values, rowvar=False))
            # A value that is constant in the reference would make other values infinitely far
            floor = max(1e-12, 1e-6 * float(np.trace(covariance)) / len(covariance))
            self._means[name] = values.mean(axis=0)
            shrunk = covariance + floor * np.eye(len(covariance))
            self._precisions[name] = np.linalg.inv(shrunk).astype(np.float64)
        n_none = sum(image.is_none for image in scored)
        self._none_share = (n_none + 1) / (len(scored) + 2)  # Laplace's estimate: never 0

    def values(self, frames: Sequence[ScoredFrame], name: Statistic) -> Array:
        """The values of a statistic, [n, k]."""
        if name == "none":
            return np.array([[float(frame.is_none)] for frame in frames])
        raw = self._raw_values(np.stack([frame.scores for frame in frames]), name)
        columns = [
            known.of(column) for known, column in zip(self._normal[name], raw.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    def p_value(self, name: Statistic, observations: Array) -> float:
        """Probability of a mean at least this far away if nothing has changed: [W, k] -> 0 to 1.

        Hotelling's two-sample T-squared test, with the covariance S of the reference alone (1931,
        "The generalization of Student's ratio", section 3). With n rows of k values in the
        reference, the mean of W other rows, and the difference d of the two means,
        T2 = d' S^-1 d / (1/n + 1/W), and T2 (n - k) / (k (n - 1)) has the distribution F(k, n - k).
        """
        from scipy.stats import binom, f

        n_seen, k = observations.shape
        if name == "none":
            count = (observations > 0.5).sum()
            return float(binom.sf(count - 1, n_seen, self._none_share))
        n = self.n_images
        distance = observations.mean(axis=0) - self._means[name]
        t_squared = distance @ self._precisions[name] @ distance / (1 / n + 1 / n_seen)
        return float(f.sf(t_squared * (n - k) / (k * (n - 1)), k, n - k))

    def _raw_values(self, scores: Array, name: Statistic) -> Array:
        """[n, C] -> [n, k], a statistic's values before they become normal scores.

        `classes`: projections of the log scores on the principal directions of the reference.
        `confidence`: log odds of the best class, and standard deviation of the log scores.
        """
        logs = _log_scores(scores)
        if name == "classes":
            projections: Array = (logs - self._center) @ self._directions.T
            return projections
        ordered = np.sort(scores, axis=1)
        others = np.maximum(ordered[:, :-1].sum(axis=1), _LEAST)
        odds = np.log(np.maximum(ordered[:, -1], _LEAST)) - np.log(others)
        return np.stack([odds, logs.std(axis=1)], axis=1)


class _NormalScores:
    """Turns values into normal scores of their ranks in a sample."""

    def __init__(self, sample: Array) -> None:
        from scipy.stats import norm

        normal = norm.ppf((np.arange(len(sample)) + 0.5) / len(sample))
        self._values, inverse = np.unique(np.sort(sample), return_inverse=True)
        # The mean over the ranks of equal values
        self._scores = np.bincount(inverse, normal) / np.bincount(inverse)

    def of(self, values: Array) -> Array:
        """[n] -> [n], interpolated between the values of the sample."""
        scores: Array = np.interp(values, self._values, self._scores)
        return scores


class DriftMonitor:
    """Raises an alarm when frames are no longer like the reference.

    Args:
        reference: the reference; None to learn it from the first observations of the stream.
        n_frames: frames per observation.
        has_none: whether the artifact detects images that show none of its classes.
    """

    def __init__(self, reference: DriftReference | None, *, n_frames: int, has_none: bool) -> None:
        self.reference = reference
        self._n_frames = n_frames
        self._has_none = has_none
        n_statistics = len(_MEANS) + 1 if has_none else len(_MEANS)
        n_tests = len(_WINDOWS) * n_statistics
        self._limit = FALSE_ALARMS_PER_FRAME * n_frames / n_tests
        self._learned: list[ScoredFrame] = []
        self._frames: list[ScoredFrame] = []
        self._last: deque[list[ScoredFrame]] = deque(maxlen=max(_WINDOWS))
        self._scene: npt.NDArray[np.float32] | None = None
        self._raised: set[Statistic] = set()

    def add(self, scored: ScoredFrame, image: Image.Image) -> list[Drift]:
        """Adds a frame; returns the alarms that begin or end with it.

        Args:
            scored: the frame's scores.
            image: the frame's image.
        """
        self._frames.append(scored)
        if len(self._frames) < self._n_frames:
            return []
        frames = self._frames
        self._frames = []
        small = image.resize((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=1.0)
        scene = np.asarray(small.convert("L"), np.float32)
        if self._scene is not None and np.abs(self._scene - scene).mean() <= _CHANGED:
            return []
        self._scene = scene
        if self.reference is None:
            self._learned.append(scored)  # a single frame, since a mean varies less
            if len(self._learned) == _N_LEARNED:
                self.reference = DriftReference(self._learned)
                self._learned = []
            return []
        self._last.append(frames)
        names: list[Statistic] = list(self.reference.statistics)
        if self._has_none:
            names.append("none")
        drifts = (self._test(name, self.reference) for name in names)
        return [drift for drift in drifts if drift is not None]

    def _test(self, name: Statistic, reference: DriftReference) -> Drift | None:
        rows = np.stack([reference.values(frames, name).mean(axis=0) for frames in self._last])
        p_values = {n: reference.p_value(name, rows[-n:]) for n in _WINDOWS if n <= len(rows)}
        is_over = name in self._raised
        longest = max(_WINDOWS)
        if is_over:
            is_back = longest in p_values and min(p_values.values()) > _OVER
            windows = [longest] if is_back else []
        else:
            windows = [n for n, p_value in p_values.items() if p_value < self._limit]
        if not windows:
            return None
        if is_over:
            self._raised.remove(name)
        else:
            self._raised.add(name)
        window = windows[0]
        frames: list[ScoredFrame] = []
        for observed in list(self._last)[-window:]:
            frames += observed
        return Drift(
            statistic=name,
            is_over=is_over,
            p_value=p_values[window],
            n_frames=len(frames),
            reference=reference.summary,
            now=ScoreSummary.of(frames),
        )


def _log_scores(scores: Array) -> Array:
    """[n, C] -> [n, C], log scores minus their mean over the classes."""
    logs: Array = np.log(np.maximum(scores, _LEAST))
    logs -= logs.mean(axis=1, keepdims=True)
    return logs
