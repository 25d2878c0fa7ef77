"""The events of a watch, as the objects that JSON lines have."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from kdedge.inference.classify import Classifier
from kdedge.inference.lines import Prediction
from kdedge.runtime.none_of_these import NONE
from kdedge.serving.drift import Drift, ScoreSummary
from kdedge.serving.source import Frame, FrameSource, SourceLost, SourceRestored


class FrameClass(NamedTuple):
    """What a frame, or several, show.

    Attributes:
        class_name: the class; None for none of the classes, and where nothing is decided.
        is_none: it is none of the classes.
    """

    class_name: str | None
    is_none: bool = False


UNDECIDED = FrameClass(None)


class Decision(NamedTuple):
    """A decision over the last frames.

    Attributes:
        answer: the answer that most of them give.
        score_percent: mean score of these frames; None if nothing is decided or without scores.
        since: the first of these frames.
    """

    answer: FrameClass
    score_percent: float | None
    since: Frame


class Decider:
    """Decides by the last M answers, with hysteresis.

    An answer is decided on when at least two thirds of the last M frames give it. It is given up,
    for no decision, when fewer than a third still do. In between, the decision stays.

    Args:
        window: M; with 1 each frame decides by itself.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._last: deque[tuple[FrameClass, float | None, Frame]] = deque(maxlen=window)
        self._answer = UNDECIDED

    def add(self, answer: FrameClass, score_percent: float | None, frame: Frame) -> Decision | None:
        """Adds a frame's answer; returns the decision if it changes.

        Args:
            answer: `UNDECIDED` for a frame that supports no answer.
            score_percent: the frame's score.
            frame: when it was.
        """
        # Kept without the picture, which may be large
        light = Frame(frame.number, frame.time, b"", frame.seconds, frame.file)
        self._last.append((answer, score_percent, light))
        counts = Counter(given for given, _, _ in self._last)
        (most, count), *_ = counts.most_common(1)
        if 3 * count >= 2 * self._window:
            decided = most
        elif 3 * counts[self._answer] < self._window:
            decided = UNDECIDED
        else:
            decided = self._answer
        if decided == self._answer:
            return None
        self._answer = decided
        return self.decision()

    def decision(self) -> Decision:
        """The present decision; there must have been a frame."""
        frames = [frame for frame in self._last if frame[0] == self._answer] or [self._last[-1]]
        scores = [score for _, score, _ in frames if score is not None]
        is_scored = scores and self._answer != UNDECIDED
        mean = sum(scores) / len(scores) if is_scored else None
        return Decision(self._answer, mean, frames[0][2])


@dataclass
class Counts:
    """Numbers of frames.

    Attributes:
        classified: with an answer.
        unreadable: without one.
        dropped: not looked at, because newer ones had come.
    """

    classified: int = 0
    unreadable: int = 0
    dropped: int = 0

    def text(self) -> str:
        """The numbers as a sentence."""
        parts = [f"{self.classified:,} frame{'' if self.classified == 1 else 's'} classified"]
        parts += [f"{self.unreadable:,} unreadable"] if self.unreadable else []
        parts += [f"{self.dropped:,} dropped for newer ones"] if self.dropped else []
        return ", ".join(parts)


def start(
    source: FrameSource, classifier: Classifier, *, window: int, reference: str
) -> dict[str, Any]:
    """The first event: what is watched, and with what."""
    return {
        "event": "start",
        "time": clock_text(time.time()),
        "source": source.name,
        "kind": source.kind,
        "artifact": str(classifier.artifact.path),
        "file": classifier.file.name,
        "runtime": classifier.backend.describe(),
        "window": window,
        "drift": reference,
    }


def frame(
    image: Frame, answer: FrameClass, result: Prediction, decision: Decision
) -> dict[str, Any]:
    """A frame's own answer, and the decision after it."""
    known = result.known_percent
    return {
        "event": "frame",
        **_when(image),
        "class": _named(answer),
        "is_none": answer.is_none,
        "score_percent": _rounded(result.top[0].score_percent),
        **({} if known is None else {"known_percent": round(known, 2)}),
        "decision": _named(decision.answer),
    }


def decision(frame: Frame, made: Decision) -> dict[str, Any]:
    """A new decision."""
    began = _when(made.since)
    return {
        "event": "decision",
        **_when(frame),
        "class": _named(made.answer),
        "is_none": made.answer.is_none,
        "score_percent": _rounded(made.score_percent),
        "since": began.pop("time"),
        **{f"since_{name}": value for name, value in began.items()},
    }


def unreadable(frame: Frame, reason: str) -> dict[str, Any]:
    """A frame without an answer."""
    return {"event": "unreadable", **_when(frame), "error": reason}


def notice(item: SourceLost | SourceRestored) -> dict[str, Any]:
    """The source is lost, or back."""
    if isinstance(item, SourceLost):
        return {"event": "lost", "time": clock_text(time.time()), "reason": item.reason}
    return {"event": "back", "time": clock_text(time.time()), "after_s": round(item.after_s, 1)}


def learned(frame: Frame, n_images: int) -> dict[str, Any]:
    """The stream's reference is complete: from now on, drift is looked for."""
    return {"event": "learned", **_when(frame), "observations": n_images}


def drift(frame: Frame, change: Drift, class_names: Sequence[str]) -> dict[str, Any]:
    """The drift alarm, or its end."""
    changed = [
        {"class": name, "reference_percent": round(before, 1), "now_percent": round(now, 1)}
        for name, before, now in change.most_changed(class_names)
    ]
    return {
        "event": "drift over" if change.is_over else "drift",
        **_when(frame),
        "statistic": change.statistic,
        "p_value": float(f"{change.p_value:.2g}"),
        "frames": change.n_frames,
        "reference": _numbers(change.reference),
        "now": _numbers(change.now),
        "most_changed": changed,
    }


def drift_text(change: Drift, source: str) -> str:
    """The warning of an alarm."""
    before, now = change.reference, change.now
    return (
        f"{source}: the last {change.n_frames} frames are unlike the reference"
        f" ({change.statistic}): mean score {now.mean_score_percent:.1f} % instead of"
        f" {before.mean_score_percent:.1f} %,"
        f" none of the classes {now.none_percent:.1f} % instead of {before.none_percent:.1f} %.\n"
        "  Look at the camera and its pictures; answers may be wrong until it is as before, or the"
        " student has learned the new pictures."
    )


def end(counts: Counts) -> dict[str, Any]:
    """The last event of a source that has an end."""
    return {"event": "end", "time": clock_text(time.time()), **asdict(counts)}


def clock_text(seconds: float) -> str:
    """A time in UTC, as ISO 8601 with milliseconds."""
    utc = datetime.fromtimestamp(seconds, timezone.utc)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _when(frame: Frame) -> dict[str, Any]:
    values: dict[str, Any] = {"time": clock_text(frame.time), "frame": frame.number}
    if frame.seconds is not None:
        values["seconds"] = round(frame.seconds, 3)
    if frame.file is not None:
        values["file"] = frame.file
    return values


def _named(answer: FrameClass) -> str | None:
    return NONE if answer.is_none else answer.class_name


def _rounded(score_percent: float | None) -> float | None:
    return None if score_percent is None else round(score_percent, 2)


def _numbers(summary: ScoreSummary) -> dict[str, float]:
    return {
        "mean_score_percent": round(summary.mean_score_percent, 2),
        "none_percent": round(summary.none_percent, 2),
    }
