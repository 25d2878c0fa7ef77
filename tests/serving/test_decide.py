"""Decisions over several frames do not flicker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdedge.serving.source import Frame
from kdedge.serving.watch_events import UNDECIDED, Decider, FrameClass

A, B, NONE = FrameClass("a"), FrameClass("b"), FrameClass(None, is_none=True)


def frame(number: int) -> Frame:
    return Frame(number, float(number), b"")


def decided(answers: list[FrameClass], window: int) -> list[FrameClass]:
    decider, found = Decider(window), []
    for number, answer in enumerate(answers, 1):
        decider.add(answer, 50.0, frame(number))
        found.append(decider.decision().answer)
    return found


def by_the_book(answers: list[FrameClass], window: int) -> list[FrameClass]:
    """The rule as the docs say it, over the whole list each time."""
    found, now = [], UNDECIDED
    for end in range(1, len(answers) + 1):
        last = answers[max(0, end - window) : end]
        shares = {one: last.count(one) / window for one in {*last, now}}
        enough = [one for one, share in shares.items() if share >= 2 / 3 - 1e-9]
        if enough:
            (now,) = enough
        elif shares[now] < 1 / 3 - 1e-9:
            now = UNDECIDED
        found.append(now)
    return found


@given(st.lists(st.sampled_from([A, B, NONE, UNDECIDED]), max_size=40), st.integers(1, 9))
def test_decisions_follow_the_rule(answers: list[FrameClass], window: int) -> None:
    assert decided(answers, window) == by_the_book(answers, window)


def test_a_single_other_frame_changes_nothing() -> None:
    assert set(decided([A] * 5 + [B] + [A] * 5 + [NONE] + [A], 7)[4:]) == {A}


def test_a_change_is_told_once_with_its_frames_mean_score_and_first_frame() -> None:
    decider, changes = Decider(3), []
    for number, (answer, score) in enumerate([(B, 90.0), (A, 40.0), (A, 60.0), (A, 80.0)], 1):
        changes.append(decider.add(answer, score, frame(number)))
    assert [one is not None for one in changes] == [False, False, True, False]
    assert changes[2] is not None
    assert (changes[2].answer, changes[2].score_percent, changes[2].since.number) == (A, 50.0, 2)


def test_a_window_of_one_takes_each_frames_answer() -> None:
    assert decided([A, B, NONE, UNDECIDED, A], 1) == [A, B, NONE, UNDECIDED, A]


def test_no_decision_has_no_score() -> None:
    decider = Decider(1)
    decider.add(A, 80.0, frame(1))
    change = decider.add(UNDECIDED, 20.0, frame(2))
    assert change is not None
    assert change.score_percent is None


def test_scores_may_be_missing() -> None:
    change = Decider(1).add(A, None, frame(1))
    assert change is not None
    assert change.score_percent is None


def test_pictures_are_not_kept_in_the_window() -> None:
    decider = Decider(7)
    decider.add(A, 1.0, Frame(1, 1.0, b"a large picture"))
    assert decider.decision().since.image == b""
