"""Watches a source with a classifier: decisions and the drift alarm, as events."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from kdedge.deploy.parity import load_smoke_set
from kdedge.errors import DataError, RecipeError, check_at_least
from kdedge.inference.classify import Classifier, decoded
from kdedge.inference.lines import Prediction, Result
from kdedge.serving import drift, watch_events
from kdedge.serving.drift import MIN_REFERENCE, DriftMonitor, DriftReference, ScoredFrame
from kdedge.serving.source import Frame, FrameSource, SourceLost
from kdedge.serving.watch_events import UNDECIDED, Decider, FrameClass

log = logging.getLogger(__name__)
DRIFT = ("artifact", "stream", "off")
WINDOW, SHOT = 7, 25
"""Defaults for frames; a folder's files are answered, and counted, one by one."""


@dataclass(frozen=True)
class WatchSettings:
    """How to watch.

    Attributes:
        each: an event for each frame.
        window: frames of a decision; None for 7, and 1 for a folder.
        min_score: percent; a frame with a lower score supports no answer.
        drift: the reference of the drift alarm: the artifact's smoke set, the start of the stream,
            or no alarm. None for the artifact's if it has enough images, or else the stream's.
        shot: frames that may show the same and count as one; None for 25, and 1 for a folder.
    """

    each: bool = False
    window: int | None = None
    min_score: float | None = None
    drift: str | None = None
    shot: int | None = None

    def __post_init__(self) -> None:
        check_at_least(1, window=self.window, shot=self.shot)
        if self.min_score is not None and not 0 <= self.min_score <= 100:
            raise RecipeError(f"min_score is {self.min_score}; expected 0 to 100.")
        if self.drift not in (None, *DRIFT):
            raise RecipeError(f"drift is {self.drift!r}; expected {', '.join(DRIFT)}.")


def watch_source(
    source: FrameSource, classifier: Classifier, settings: WatchSettings
) -> Iterator[dict[str, Any]]:
    """Classifies a source's frames and yields events, as docs/deploy/watch.md lists them.

    Raises:
        RecipeError: the artifact gives no scores, and a setting needs them.
        DataError: a video has no frame, or none could be classified.
        MissingPackage: SciPy is not installed, and the drift alarm is on.
    """
    watching = _Watching(source, classifier, settings)
    try:
        yield from watching.events()
    finally:
        watching.log_counts()


class _Watching:
    """The state of one watch."""

    def __init__(
        self, source: FrameSource, classifier: Classifier, settings: WatchSettings
    ) -> None:
        self._source, self._classifier, self._settings = source, classifier, settings
        is_folder = source.kind == "folder"
        self._each = settings.each or (is_folder and settings.window is None)
        self._window = settings.window or (1 if is_folder else WINDOW)
        self._decider = Decider(self._window)
        has_scores = classifier.artifact.head == "scores"
        is_asked = settings.min_score is not None or settings.drift not in (None, "off")
        if is_asked and not has_scores:
            raise RecipeError(
                f"min_score and drift need scores, and {classifier.artifact.path} was exported with"
                " the head argmax, which gives none.\n  Export again with the head scores."
            )
        self._drift: DriftMonitor | None = None
        self._reference = "off"
        if has_scores and settings.drift != "off":
            drift.check_environment()
            reference = None
            if settings.drift != "stream":
                reference = _reference_of(classifier, is_asked=settings.drift == "artifact")
            self._reference = "stream" if reference is None else "artifact"
            shot = settings.shot or (1 if is_folder else SHOT)
            self._drift = DriftMonitor(reference, shot=shot, has_none=classifier.tells_none)
        self._counts = watch_events.Counts()
        self._first_failed: str | None = None

    def events(self) -> Iterator[dict[str, Any]]:
        """Yields the events of the whole source."""
        yield watch_events.start(
            self._source, self._classifier, window=self._window, reference=self._reference
        )
        n_classes = len(self._classifier.artifact.class_names)
        for item in self._source.items:
            if isinstance(item, Frame):
                image = str(item.number), self._classifier.prepare(decoded(item.image))
                (result,) = self._classifier.classify_batch([image], top=n_classes)
                yield from self._frame(item, result)
                continue
            if isinstance(item, SourceLost):
                log.warning("%s is lost: %s.", self._source.name, item.reason)
            yield watch_events.notice(item)
        if not self._counts.classified:
            why = f"The first has no answer: {self._first_failed}." if self._first_failed else ""
            raise DataError(
                f"{self._source.name} has no frame that could be classified.\n"
                f"  {why or 'It is empty: record it again, or name another video.'}"
            )
        self._counts.dropped = self._source.n_dropped()
        yield watch_events.end(self._counts)

    def _frame(self, frame: Frame, result: Result) -> Iterator[dict[str, Any]]:
        """The events of one frame."""
        if not isinstance(result, Prediction):
            self._counts.unreadable += 1
            self._first_failed = self._first_failed or result.reason
            yield watch_events.unreadable(frame, result.reason)
            return
        assert isinstance(frame.image, Image.Image)
        self._counts.classified += 1
        best = result.top[0]
        answer = FrameClass(None, is_none=True) if result.is_none else FrameClass(best.class_name)
        is_sure = self._settings.min_score is None or (
            best.score_percent is not None and best.score_percent >= self._settings.min_score
        )
        changed = self._decider.add(answer if is_sure else UNDECIDED, best.score_percent, frame)
        if self._each:
            yield watch_events.frame(frame, answer, result, self._decider.decision())
        if changed is not None:
            yield watch_events.decision(frame, changed)
        if self._drift is None:
            return
        was_learning = self._drift.reference is None
        names = self._classifier.artifact.class_names
        for change in self._drift.add(_scored(result, names), frame.image):
            if not change.is_over:
                log.warning("%s", watch_events.drift_text(change, self._source.name))
            yield watch_events.drift(frame, change, names)
        if was_learning and self._drift.reference is not None:
            yield watch_events.learned(frame, self._drift.reference.n_images)

    def log_counts(self) -> None:
        """Logs how many frames were classified, unreadable and dropped."""
        self._counts.dropped = self._source.n_dropped()
        log.info("%s: %s.", self._source.name, self._counts.text())


def _reference_of(classifier: Classifier, *, is_asked: bool) -> DriftReference | None:
    """The reference of the artifact's smoke set; None if that has too few images.

    Raises:
        DataError: it was asked for, and cannot be made.
    """
    try:
        return DriftReference(_smoke_scores(classifier))
    except DataError as error:
        if is_asked:
            raise DataError(f"{error}\n  Take the start of the stream: --drift stream.") from error
        return None


def _smoke_scores(classifier: Classifier) -> list[ScoredFrame]:
    """Scores of the artifact's smoke set by the file that watches.

    Raises:
        DataError: it has no smoke set, or too few images.
    """
    artifact, names = classifier.artifact, classifier.artifact.class_names
    pixels = load_smoke_set(artifact).pixels
    images = ((str(i), Image.fromarray(image)) for i, image in enumerate(pixels))
    results = classifier.classify_many(images, top=len(names))
    scored = [_scored(result, names) for result in results if isinstance(result, Prediction)]
    if len(scored) < MIN_REFERENCE:
        raise DataError(
            f"The smoke set of {artifact.path} has {len(scored)} images with scores, and the drift"
            f" alarm needs {MIN_REFERENCE} to compare with."
        )
    return scored


def _scored(prediction: Prediction, class_names: tuple[str, ...]) -> ScoredFrame:
    """The scores in the artifact's order."""
    by_name = {name: score or 0.0 for name, score in prediction.top}
    return ScoredFrame(np.array([by_name[name] for name in class_names]) / 100, prediction.is_none)
