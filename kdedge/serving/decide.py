"""From the answers of single frames to a decision that does not flicker."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from kdedge.serving.source import Frame


class Answer(NamedTuple):
    """What a frame, or several, show.

    Attributes:
        class_name: the class; None for none of the classes, and where nothing is decided.
        is_none: it is none of the classes.
    """

    class_name: str | None
    is_none: bool = False


UNDECIDED = Answer(None)


class Decision(NamedTuple):
    """A decision over the last frames.

    Attributes:
        answer: the answer that most of them give.
        score_percent: mean score of these frames; None if nothing is decided or without scores.
        since: the first of these frames.
    """

    answer: Answer
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
        self._last: deque[tuple[Answer, float | None, Frame]] = deque(maxlen=window)
        self._answer = UNDECIDED

    def add(self, answer: Answer, score_percent: float | None, frame: Frame) -> Decision | None:
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
        frames = [one for one in self._last if one[0] == self._answer] or [self._last[-1]]
        scores = [score for _, score, _ in frames if score is not None]
        is_scored = scores and self._answer != UNDECIDED
        mean = sum(scores) / len(scores) if is_scored else None
        return Decision(self._answer, mean, frames[0][2])
