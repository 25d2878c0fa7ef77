"""Watches a source with a classifier: yields decisions and drift alarms as JSON events."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from kdedge.deploy.parity import load_smoke_set
from kdedge.errors import DataError, RecipeError
from kdedge.inference.classify import Classifier, decode_input
from kdedge.inference.lines import Prediction, best_name
from kdedge.plugins import need
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
WINDOW, SHOT = 7, 25
"""Defaults for frames; for the files of a folder, both are 1."""


class Decider:
    """Decides by the answers for the last M frames, with hysteresis.

    An answer becomes the decision when at least two thirds of the last M frames have it. The
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
        self._last: deque[tuple[str | None, float | None, Event]] = deque(maxlen=window)

    def add(
        self, answer: str | None, score_percent: float | None, when: Event
    ) -> tuple[float | None, Event] | None:
        """Adds a frame's answer.

        Args:
            answer: the class of the frame, `none`, or None for a frame that counts for no answer.
            score_percent: the frame's score; None if there are no scores.
            when: time and number of the frame.

        Returns:
            None if the decision stays. Else the mean score of the frames with the new decision, or
            None if there is no decision or no score, and the `when` of the first of these frames.
        """
        self._last.append((answer, score_percent, when))
        counts = Counter(answer for answer, _, _ in self._last)
        (most_common, count), *_ = counts.most_common(1)
        decision = self.decision
        if 3 * count >= 2 * self.window:
            decision = most_common
        elif 3 * counts[self.decision] < self.window:
            decision = None
        if decision == self.decision:
            return None
        self.decision = decision
        frames = [frame for frame in self._last if frame[0] == decision] or [self._last[-1]]
        scores = [score for _, score, _ in frames if score is not None and decision is not None]
        return sum(scores) / len(scores) if scores else None, frames[0][2]


def watch_source(
    source: FrameSource,
    classifier: Classifier,
    *,
    each: bool = False,
    window: int | None = None,
    min_score: float | None = None,
    drift: str | None = None,
    shot: int | None = None,
) -> Iterator[Event]:
    """Classifies a source's frames and yields events, as docs/deploy/watch.md lists them.

    Args:
        source: the source to watch.
        classifier: classifies its frames.
        each: whether to yield an event for each frame.
        window: frames of a decision; None for 7, or 1 for a folder.
        min_score: percent; a frame with a lower score counts for no answer.
        drift: reference of the drift alarm: `artifact`, its smoke set; `stream`, the start of the
            stream; `off`, no alarm. None: the smoke set if it has enough images, else the stream.
        shot: frames that may show the same and count as one; None for 25, or 1 for a folder.

    Raises:
        RecipeError: the artifact gives no scores, and a setting needs them.
        DataError: a video has no frame, or no frame could be classified.
        MissingPackage: SciPy is not installed, and the drift alarm is on.
    """
    is_folder = source.kind == "folder"
    each = each or (is_folder and window is None)
    artifact, names = classifier.artifact, classifier.artifact.class_names
    has_scores = artifact.head == "scores"
    if not has_scores and (min_score is not None or drift not in (None, "off")):
        raise RecipeError(
            f"--min-score and --drift need scores, and {artifact.path} was exported with the head"
            " argmax, which gives none.\n  Export again with --head scores."
        )
    monitor = None
    if has_scores and drift != "off":
        need("watch", "The drift alarm", "scipy")
        reference = None if drift == "stream" else _reference(classifier, drift)
        shot = shot or (1 if is_folder else SHOT)
        monitor = DriftMonitor(reference, shot=shot, has_none=classifier.tells_none)
    decider = Decider(window or (1 if is_folder else WINDOW))
    counts = Counter(classified=0, unreadable=0, dropped=0)
    first_failed = "It is empty: record it again, or name another video."
    try:
        yield {
            **event("start"),
            "source": source.name,
            "kind": source.kind,
            "artifact": str(artifact.path),
            "file": classifier.file.name,
            "runtime": classifier.backend.describe(),
            "window": decider.window,
            "drift": "off" if monitor is None else "artifact" if monitor.reference else "stream",
        }
        for item in source.items:
            if not isinstance(item, Frame):
                if item["event"] == "lost":
                    log.warning(f"{source.name} is lost: {item['reason']}.")
                yield item
                continue
            when, image = item.when(), decode_input(item.image)
            pixels = classifier.prepare(image)
            (result,) = classifier.classify_batch([(str(item.number), pixels)], top=len(names))
            if not isinstance(result, Prediction):
                if not counts["classified"] + counts["unreadable"]:
                    first_failed = f"The first has no answer: {result.reason}."
                counts["unreadable"] += 1
                yield {"event": "unreadable", **when, "error": result.reason}
                continue
            counts["classified"] += 1
            score, known = result.top[0].score_percent, result.known_percent
            changed = decider.add(best_name(result, min_score), score, when)
            if each:
                yield {
                    "event": "frame",
                    **when,
                    "class": best_name(result, None),
                    "is_none": result.is_none,
                    "score_percent": _rounded(score),
                    **({} if known is None else {"known_percent": _rounded(known)}),
                    "decision": decider.decision,
                }
            if changed is not None:
                mean, since = changed
                yield {
                    "event": "decision",
                    **when,
                    "class": decider.decision,
                    "is_none": classifier.tells_none and decider.decision == NONE,
                    "score_percent": _rounded(mean),
                    "since": since["time"],
                    **{f"since_{key}": value for key, value in since.items() if key != "time"},
                }
            if monitor is None:
                continue
            assert isinstance(image, Image.Image)
            was_learning = monitor.reference is None
            for change in monitor.add(_scored(result, names), image):
                if not change.is_over:
                    log.warning(f"{source.name}: {_warning(change)}")
                yield {
                    "event": "drift over" if change.is_over else "drift",
                    **when,
                    **_drift_values(change, names),
                }
            if was_learning and monitor.reference is not None:
                yield {"event": "learned", **when, "observations": monitor.reference.n_images}
        if not counts["classified"]:
            raise DataError(
                f"{source.name} has no frame that could be classified.\n  {first_failed}"
            )
        counts["dropped"] = source.n_dropped()
        yield {**event("end"), **counts}
    finally:
        n = counts["classified"]
        parts = [f"{n:,} frame{'' if n == 1 else 's'} classified"]
        if counts["unreadable"]:
            parts.append(f"{counts['unreadable']:,} unreadable")
        if source.n_dropped():
            parts.append(f"{source.n_dropped():,} dropped for newer ones")
        log.info(f"{source.name}: {', '.join(parts)}.")


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
            {"class": name, "reference_percent": round(before, 1), "now_percent": round(now, 1)}
            for name, before, now in change.most_changed(class_names)
        ],
    }


def _warning(change: Drift) -> str:
    """The warning that a drift has begun."""
    before, now = change.reference, change.now
    return (
        f"the last {change.n_frames} frames are unlike the reference ({change.statistic}): mean"
        f" score {now.mean_score_percent:.1f} % instead of {before.mean_score_percent:.1f} %,"
        f" none of the classes {now.none_percent:.1f} % instead of {before.none_percent:.1f} %.\n"
        "  Look at the camera and its pictures; answers may be wrong until it is as before, or the"
        " student has learned the new pictures."
    )


def _reference(classifier: Classifier, drift: str | None) -> DriftReference | None:
    """The drift reference from the artifact's smoke set; None if it has too few images.

    Raises:
        DataError: `drift` is `artifact`, but its smoke set is missing or too small.
    """
    artifact, names = classifier.artifact, classifier.artifact.class_names
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
        raise DataError(f"{reason}\n  Take the start of the stream: --drift stream.")
    return None


def _scored(prediction: Prediction, class_names: tuple[str, ...]) -> ScoredFrame:
    """A prediction's scores in the order of the artifact's classes."""
    by_name = {name: score or 0.0 for name, score in prediction.top}
    return ScoredFrame(np.array([by_name[name] for name in class_names]) / 100, prediction.is_none)
