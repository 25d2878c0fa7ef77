"""Watches a source with a classifier: yields decisions and drift alarms as JSON events."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from kdedge.artifacts.parity import load_smoke_set
from kdedge.errors import DataError
from kdedge.inference.classify import Classifier, decode_input
from kdedge.inference.results import Prediction, best_name, no_scores
from kdedge.messages import option
from kdedge.packages import need
from kdedge.runtime.none_of_these import NONE
from kdedge.serving.drift import (
    MIN_REFERENCE,
    Drift,
    DriftMonitor,
    DriftReference,
    ScoredFrame,
    ScoreSummary,
)
from kdedge.serving.source import Event, Frame, FrameSource, event

log = logging.getLogger(__name__)
DRIFT = ("artifact", "stream", "off")
# Defaults for frames; for the files of a folder, both are 1
WINDOW = 7
DRIFT_FRAMES = 25


class _Vote(NamedTuple):
    """The prediction for one frame; see `Decider.add`."""

    predicted: str | None
    score_percent: float | None
    when: Event


class Change(NamedTuple):
    """A new decision.

    Attributes:
        mean_score_percent: of the frames with the new decision; None if there is no decision or no
            score.
        since: the `when` of the first of these frames.
    """

    mean_score_percent: float | None
    since: Event


class Decider:
    """Decides by the predictions for the last M frames, with hysteresis.

    A class becomes the decision when at least two thirds of the last M frames have it. The
    decision is dropped when less than a third of them have it. In between, it stays.

    Args:
        window: M; with 1, each frame decides alone.

    Attributes:
        window: M.
        decision: a class, `none`, or None if there is no decision.
    """

    def __init__(self, window: int) -> None:
        self.decision: str | None = None
        self.window = window
        self._last: deque[_Vote] = deque(maxlen=window)

    def add(self, predicted: str | None, score_percent: float | None, when: Event) -> Change | None:
        """Adds a frame's prediction; returns None if the decision stays.

        Args:
            predicted: the class of the frame, `none`, or None for a frame that counts for neither.
            score_percent: the frame's score; None if there are no scores.
            when: time and number of the frame.
        """
        self._last.append(_Vote(predicted, score_percent, when))
        counts = Counter(vote.predicted for vote in self._last)
        most_common, count = counts.most_common(1)[0]
        decision = self.decision
        if 3 * count >= 2 * self.window:
            decision = most_common
        elif 3 * counts[self.decision] < self.window:
            decision = None
        if decision == self.decision:
            return None
        self.decision = decision
        votes = [vote for vote in self._last if vote.predicted == decision] or [self._last[-1]]
        scores = [vote.score_percent for vote in votes if vote.score_percent is not None]
        if decision is None or not scores:
            return Change(None, votes[0].when)
        return Change(sum(scores) / len(scores), votes[0].when)


@dataclass
class Watcher:
    """Classifies a source's frames and yields events, as docs/deploy/watch.md lists them.

    Attributes:
        source: the source to watch.
        classifier: classifies its frames.
        frame_events: whether to yield an event for each frame.
        window: frames of a decision; None for 7, or 1 for a folder.
        min_score: percent; a frame with a lower score counts for no class.
        drift: reference of the drift alarm: `artifact`, its smoke set; `stream`, the start of the
            stream; `off`, no alarm. None: the smoke set if it has enough images, else the stream.
        drift_frames: frames in a row that the alarm counts as one; None for 25, or 1 for a folder.

    Raises:
        RecipeError: the artifact gives no scores, and a setting needs them.
        DataError: the smoke set is missing or too small, and `drift` is `artifact`.
        MissingPackage: SciPy is not installed, and the drift alarm is on.
    """

    source: FrameSource
    classifier: Classifier
    frame_events: bool
    window: int | None
    min_score: float | None
    drift: str | None
    drift_frames: int | None

    def __post_init__(self) -> None:
        artifact = self.classifier.artifact
        is_folder = self.source.kind == "folder"
        has_scores = artifact.head == "scores"
        if not has_scores and (self.min_score is not None or self.drift not in (None, "off")):
            needed_by = "--drift" if self.min_score is None else "--min-score"
            raise no_scores(option(needed_by), artifact.path)
        self.frame_events = self.frame_events or (is_folder and self.window is None)
        self._decider = Decider(self.window or (1 if is_folder else WINDOW))
        self._monitor: DriftMonitor | None = None
        if has_scores and self.drift != "off":
            need("scipy")
            reference = None if self.drift == "stream" else _reference(self.classifier, self.drift)
            n_frames = self.drift_frames or (1 if is_folder else DRIFT_FRAMES)
            has_none = self.classifier.tells_none
            self._monitor = DriftMonitor(reference, n_frames=n_frames, has_none=has_none)
        self._n_classified = self._n_unreadable = 0
        self._first_reason: str | None = None

    def events(self) -> Iterator[Event]:
        """Watches until the source ends or the iterator is closed.

        Raises:
            DataError: a video has no frame, or no frame could be classified.
        """
        try:
            yield self._start()
            for item in self.source.items:
                if isinstance(item, Frame):
                    yield from self._events_of(item)
                    continue
                if item["event"] == "lost":
                    self._warn(item, f"is lost: {item['reason']}.")
                yield item
            yield self._end()
        finally:
            noun = "frame" if self._n_classified == 1 else "frames"
            n_dropped = self.source.n_dropped()
            parts = [f"{self._n_classified:,} {noun} classified"]
            if self._n_unreadable:
                parts.append(f"{self._n_unreadable:,} unreadable")
            if n_dropped:
                parts.append(f"{n_dropped:,} dropped for newer ones")
            log.info(f"{self.source.name}: {', '.join(parts)}.")

    def _warn(self, when: Event, text: str) -> None:
        """Warns of an event with its time: the same warning would be shown only once."""
        log.warning(f"{when['time']}: {self.source.name} {text}")

    def _start(self) -> Event:
        classifier = self.classifier
        if self._monitor is None:
            drift = "off"
        else:
            drift = "stream" if self._monitor.reference is None else "artifact"
        return event(
            "start",
            source=self.source.name,
            kind=self.source.kind,
            artifact=str(classifier.artifact.path),
            file=classifier.file.name,
            runtime=classifier.backend.describe(),
            window=self._decider.window,
            drift=drift,
        )

    def _events_of(self, frame: Frame) -> Iterator[Event]:
        """Classifies a frame; yields what is known of it, or that it is unreadable."""
        classifier = self.classifier
        when = frame.when()
        image = decode_input(frame.image)
        batch = [(str(frame.number), classifier.prepare(image))]
        (result,) = classifier.classify_batch(batch, top=len(classifier.artifact.class_names))
        if not isinstance(result, Prediction):
            self._n_unreadable += 1
            self._first_reason = self._first_reason or result.reason
            yield {"event": "unreadable", **when, "error": result.reason}
            return
        self._n_classified += 1
        change = self._decider.add(best_name(result, self.min_score), result.score_percent, when)
        if self.frame_events:
            yield {"event": "frame", **when, **_classes(result), "decision": self._decider.decision}
        if change is not None:
            yield self._decision(when, change)
        if self._monitor is not None:
            assert isinstance(image, Image.Image)
            yield from self._drifts(self._monitor, result, image, when)

    def _decision(self, when: Event, change: Change) -> Event:
        decision = self._decider.decision
        frame = {f"since_{key}": value for key, value in change.since.items() if key != "time"}
        return {
            "event": "decision",
            **when,
            "class": decision,
            "is_none": self.classifier.tells_none and decision == NONE,
            "score_percent": _rounded(change.mean_score_percent),
            "since": change.since["time"],
            **frame,
        }

    def _drifts(
        self, monitor: DriftMonitor, result: Prediction, image: Image.Image, when: Event
    ) -> Iterator[Event]:
        """The alarms that a frame begins or ends, and that the reference is learned."""
        names = self.classifier.artifact.class_names
        was_learning = monitor.reference is None
        for drift in monitor.add(_scored(result, names), image):
            if not drift.is_over:
                self._warn(when, _warning(drift))
            name = "drift over" if drift.is_over else "drift"
            yield {"event": name, **when, **_drift_values(drift, names)}
        if was_learning and monitor.reference is not None:
            yield {"event": "learned", **when, "observations": monitor.reference.n_images}

    def _end(self) -> Event:
        if not self._n_classified:
            reason = "It is empty: record it again, or name another video."
            if self._first_reason is not None:
                reason = f"The first has no prediction: {self._first_reason}."
            name = self.source.name
            raise DataError(f"{name} has no frame that could be classified.\n  {reason}")
        counts = {"classified": self._n_classified, "unreadable": self._n_unreadable}
        return event("end", **counts, dropped=self.source.n_dropped())


def _classes(result: Prediction) -> Event:
    """The values of a frame's event that its prediction gives."""
    values = {
        "class": result.class_name,
        "is_none": result.is_none,
        "score_percent": _rounded(result.score_percent),
    }
    if result.known_percent is not None:
        values["known_percent"] = _rounded(result.known_percent)
    return values


def _rounded(percent: float | None) -> float | None:
    return None if percent is None else round(percent, 2)


def _drift_values(change: Drift, class_names: Sequence[str]) -> Event:
    """The values of a drift event."""

    def numbers(summary: ScoreSummary) -> Event:
        return {
            "mean_score_percent": _rounded(summary.mean_score_percent),
            "none_percent": _rounded(summary.none_percent),
        }

    return {
        "statistic": change.statistic,
        "p_value": float(f"{change.p_value:.2g}"),
        "frames": change.n_frames,
        "reference": numbers(change.reference),
        "now": numbers(change.now),
        "most_changed": [
            {
                "class": share.class_name,
                "reference_percent": round(share.before_percent, 1),
                "now_percent": round(share.now_percent, 1),
            }
            for share in change.most_changed(class_names)
        ],
    }


def _warning(change: Drift) -> str:
    """The warning that a drift has begun."""
    before, now = change.reference, change.now
    return (
        f"has changed: the last {change.n_frames} frames are unlike the reference"
        f" ({change.statistic}): mean"
        f" score {now.mean_score_percent:.1f} % instead of {before.mean_score_percent:.1f} %,"
        f" none of the classes {now.none_percent:.1f} % instead of {before.none_percent:.1f} %.\n"
        "  Look at the camera and its images; predictions may be wrong until it is as before, or"
        " the student has learned the new images."
    )


def _reference(classifier: Classifier, drift: str | None) -> DriftReference | None:
    """The drift reference from the artifact's smoke set; None if it has too few images.

    Raises:
        DataError: `drift` is `artifact`, but its smoke set is missing or too small.
    """
    artifact = classifier.artifact
    names = artifact.class_names
    try:
        pixels = load_smoke_set(artifact).pixels
        images = ((str(i), Image.fromarray(image)) for i, image in enumerate(pixels))
        results = classifier.classify_many(images, top=len(names))
        scored = [_scored(result, names) for result in results if isinstance(result, Prediction)]
        if len(scored) >= MIN_REFERENCE:
            return DriftReference(scored)
        reason = (
            f"The smoke set of {artifact.path} has {len(scored)} images with scores, and the drift"
            f" alarm needs {MIN_REFERENCE} to compare with."
        )
    except DataError as error:
        reason = str(error)
    if drift == "artifact":
        raise DataError(f"{reason}\n  Take the start of the stream: {option('--drift stream')}.")
    return None


def _scored(prediction: Prediction, class_names: tuple[str, ...]) -> ScoredFrame:
    """A prediction's scores in the order of the artifact's classes."""
    by_name = {name: score or 0.0 for name, score in prediction.top}
    return ScoredFrame(np.array([by_name[name] for name in class_names]) / 100, prediction.is_none)
