"""The drift alarm: its tests are those it says, it fires after a change, and rarely without one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdedge.runtime.backend import softmax
from kdedge.serving.drift import (
    FALSE_ALARMS_PER_FRAME,
    Drift,
    DriftMonitor,
    DriftReference,
    ScoredFrame,
    ScoreSummary,
)
from kdedge.serving.watch import Decider

stats = pytest.importorskip("scipy.stats")

N_CLASSES = 6


def draw(
    rng: np.random.Generator, n: int, *, shift: float = 0.0, scale: float = 1.0, none: float = 0.0
) -> list[ScoredFrame]:
    """Images of classes at random, with correlated logits; `shift` moves those of two classes."""
    mixing = np.random.default_rng(5).normal(size=(N_CLASSES, N_CLASSES))
    logits = rng.normal(size=(n, N_CLASSES)) @ mixing * scale
    logits[:, 0] += 3 * shift
    logits[:, 3] -= 3 * shift
    return [ScoredFrame(row, bool(rng.random() < none)) for row in softmax(logits)]


def play(
    monitor: DriftMonitor, scenes: list[ScoredFrame], *, length: int = 20
) -> list[tuple[int, Drift]]:
    """Shows each image for several frames, each time with another image."""
    found, n = [], 0
    for number, one in enumerate(scenes):
        image = Image.new("L", (16, 16), 20 * (number % 12))
        for _ in range(length):
            n += 1
            found += [(n, drift) for drift in monitor.add(one, image)]
    return found


@pytest.fixture(scope="module")
def reference() -> DriftReference:
    return DriftReference(draw(np.random.default_rng(0), 200, none=0.05))


def test_without_a_change_there_is_no_alarm_in_10000_frames(reference: DriftReference) -> None:
    monitor = DriftMonitor(reference, n_frames=20, has_none=True)
    assert play(monitor, draw(np.random.default_rng(1), 500, none=0.05)) == []


def test_a_single_none_is_no_alarm_where_the_reference_had_none() -> None:
    reference = DriftReference(draw(np.random.default_rng(0), 200))
    observations = np.array([[1.0], *[[0.0]] * 19])
    assert 0.05 < reference.p_value("none", observations) < 0.15  # 1 - (1 - 1 / 202) ** 20


@pytest.mark.parametrize(
    ("change", "statistic"),
    [({"shift": 1.5}, "classes"), ({"scale": 0.2}, "confidence"), ({"none": 0.9}, "none")],
)
def test_a_change_is_seen_within_500_frames_and_its_end_too(
    reference: DriftReference, change: dict[str, float], statistic: str
) -> None:
    rng = np.random.default_rng(2)
    monitor = DriftMonitor(reference, n_frames=20, has_none=True)
    same = {"none": 0.05}
    parts = [draw(rng, 50, **same), draw(rng, 50, **{**same, **change}), draw(rng, 150, **same)]
    found = [
        one
        for one in play(monitor, [*parts[0], *parts[1], *parts[2]])
        if one[1].statistic == statistic
    ]
    (began, alarm), (ended, over) = found
    assert (alarm.is_over, over.is_over) == (False, True)
    assert 1000 < began <= 1500
    assert ended > 2000
    assert alarm.p_value < FALSE_ALARMS_PER_FRAME * 20 / 15
    assert alarm.n_frames % 20 == 0


def test_an_alarm_has_the_numbers_of_both_sides(reference: DriftReference) -> None:
    rng = np.random.default_rng(3)
    monitor = DriftMonitor(reference, n_frames=1, has_none=False)
    scenes = draw(rng, 40, shift=4)
    (_, alarm), *_ = play(monitor, scenes, length=1)
    assert alarm.reference == reference.summary
    assert (
        alarm.now.mean_score_percent == ScoreSummary.of(scenes[: alarm.n_frames]).mean_score_percent
    )
    name, before, now = alarm.most_changed("abcdef")[0]
    assert name == "a"
    assert now > before + 20


def test_a_p_value_is_that_of_the_plain_test_on_ranks_of_centered_log_scores() -> None:
    rng = np.random.default_rng(4)
    known, seen = draw(rng, 100), draw(rng, 4)
    reference = DriftReference(known)

    def rows(images: list[ScoredFrame]) -> np.ndarray:
        logs = np.log(np.stack([one.scores for one in images]))
        return logs - logs.mean(axis=1, keepdims=True)

    center = rows(known).mean(axis=0)
    _, _, directions = np.linalg.svd(rows(known) - center)
    project = directions[:4].T  # 100 images allow four
    before, now = (rows(known) - center) @ project, (rows(seen) - center) @ project
    normal = stats.norm.ppf((np.arange(100) + 0.5) / 100)
    scores = normal[before.argsort(axis=0).argsort(axis=0)]
    moved = np.stack(
        [np.interp(now[:, i], np.sort(before[:, i]), normal) for i in range(4)], axis=1
    )
    distance = moved.mean(axis=0) - scores.mean(axis=0)
    t_squared = distance @ np.linalg.inv(np.cov(scores.T)) @ distance / (1 / 100 + 1 / 4)
    expected = stats.f.sf(t_squared * 96 / (4 * 99), 4, 96)
    values = reference.values(seen, "classes")
    # A floor keeps the covariance from being singular
    assert reference.p_value("classes", values) == pytest.approx(expected, rel=1e-4)


def test_a_still_scene_counts_once(reference: DriftReference) -> None:
    monitor, image = DriftMonitor(reference, n_frames=5, has_none=False), Image.new("L", (16, 16))
    (odd,) = draw(np.random.default_rng(6), 1, shift=9)
    assert [monitor.add(odd, image) for _ in range(2000)] == [[]] * 2000


def test_without_a_reference_it_is_learned_from_the_stream() -> None:
    rng = np.random.default_rng(7)
    monitor = DriftMonitor(None, n_frames=1, has_none=False)
    assert play(monitor, draw(rng, 199), length=1) == []
    assert monitor.reference is None
    assert play(monitor, draw(rng, 100), length=1) == []
    assert monitor.reference.n_images == 200
    assert play(monitor, draw(rng, 40, shift=2), length=1)


def test_one_class_and_two_classes_can_be_watched() -> None:
    rng = np.random.default_rng(8)
    for n_classes in (1, 2):
        known = [ScoredFrame(row) for row in softmax(rng.normal(size=(150, n_classes)))]
        monitor = DriftMonitor(DriftReference(known[:100]), n_frames=1, has_none=True)
        assert play(monitor, known[100:], length=1) == []
        assert play(monitor, [ScoredFrame(known[0].scores, is_none=True)] * 20, length=1)


def test_scores_of_exactly_zero_and_one_are_finite(reference: DriftReference) -> None:
    sure = ScoredFrame(np.eye(N_CLASSES)[0])
    assert np.isfinite(reference.values([sure], "classes")).all()
    assert np.isfinite(reference.values([sure], "confidence")).all()


def test_a_p_value_below_a_tenth_comes_in_a_tenth_of_the_cases() -> None:
    rng = np.random.default_rng(9)
    p_values = []
    for _ in range(200):
        known = DriftReference(draw(rng, 100))
        for _ in range(5):
            p_values.append(known.p_value("classes", known.values(draw(rng, 4), "classes")))
    for level in (0.01, 0.1, 0.5):
        # Five values share a reference, so the share varies a little more than by chance
        assert np.mean(np.array(p_values) < level) == pytest.approx(level, abs=0.06)


def test_noise_and_small_movement_are_the_same_scene_and_another_image_is_not() -> None:
    rng = np.random.default_rng(10)
    pixels = rng.normal(128, 40, (4, 4)).repeat(16, 0).repeat(16, 1)
    monitor = DriftMonitor(None, n_frames=1, has_none=False)

    def show(values: np.ndarray) -> None:
        monitor.add(*draw(rng, 1), Image.fromarray(values.clip(0, 255).astype(np.uint8)))

    show(pixels)
    show(pixels + rng.normal(0, 10, pixels.shape))
    show(np.roll(pixels, 1, axis=1))
    for i in range(198):
        show(pixels[::-1] if i % 2 == 0 else pixels)
    assert monitor.reference is None  # 199 scenes
    show(pixels[::-1])
    assert monitor.reference is not None


# Decisions over several frames do not flicker


Answers = list[str | None]


def decided(answers: Answers, window: int) -> Answers:
    decider, found = Decider(window), []
    for answer in answers:
        decider.add(answer, 50.0, {})
        found.append(decider.decision)
    return found


def by_the_book(answers: Answers, window: int) -> Answers:
    """The rule as the docs say it, over the whole list each time."""
    found: Answers = []
    now = None
    for end in range(1, len(answers) + 1):
        last = answers[max(0, end - window) : end]
        shares = {one: last.count(one) / window for one in {*last, now}}
        enough = [one for one, share in shares.items() if share >= 2 / 3 - 1e-9]
        if enough:
            (now,) = enough
        elif shares[now] < 1 / 3 - 1e-9:
            now = None
        found.append(now)
    return found


@given(st.lists(st.sampled_from(["a", "b", "none", None]), max_size=40), st.integers(1, 9))
def test_decisions_follow_the_rule(answers: Answers, window: int) -> None:
    assert decided(answers, window) == by_the_book(answers, window)


def test_a_change_is_told_once_with_its_frames_mean_score_and_first_frame() -> None:
    decider, changes = Decider(3), []
    for number, (answer, score) in enumerate([("b", 90.0), *(("a", x) for x in (40, 60, 80))]):
        changes.append(decider.add(answer, score, {"frame": number}))
    assert changes == [None, None, (50.0, {"frame": 1}), None]
    assert decider.decision == "a"


def test_no_decision_has_no_score() -> None:
    decider = Decider(1)
    decider.add("a", 80.0, {"frame": 1})
    assert decider.add(None, 20.0, {"frame": 2}) == (None, {"frame": 2})
    assert Decider(1).add("a", None, {}) == (None, {})  # of a head without scores
