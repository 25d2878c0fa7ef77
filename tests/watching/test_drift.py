"""The drift alarm: its tests are those it says, it fires after a change, and rarely without one."""

from __future__ import annotations

import numpy as np
import pytest

from kdedge.runtime.batches import softmax
from kdedge.watching.drift import (
    FALSE_ALARMS_PER_FRAME,
    Drift,
    DriftMonitor,
    Reference,
    Scored,
    most_changed,
    summary,
)
from kdedge.watching.mean_test import MeanTest

N_CLASSES = 6


def draw(
    rng: np.random.Generator, n: int, *, shift: float = 0.0, scale: float = 1.0, none: float = 0.0
) -> list[Scored]:
    """Images of classes at random, with correlated logits; `shift` moves those of two classes."""
    mixing = np.random.default_rng(5).normal(size=(N_CLASSES, N_CLASSES))
    logits = rng.normal(size=(n, N_CLASSES)) @ mixing * scale
    logits[:, 0] += 3 * shift
    logits[:, 3] -= 3 * shift
    return [Scored(row, bool(rng.random() < none)) for row in softmax(logits)]


def play(
    monitor: DriftMonitor, shots: list[Scored], *, length: int = 20
) -> list[tuple[int, Drift]]:
    """Shows each image for several frames, every shot with another thumbnail."""
    found, n = [], 0
    for number, one in enumerate(shots):
        small = np.full((16, 16), 20.0 * (number % 12), np.float32)
        for _ in range(length):
            n += 1
            found += [(n, drift) for drift in monitor.add(one, lambda small=small: small)]
    return found


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(draw(np.random.default_rng(0), 200, none=0.05))


def test_without_a_change_there_is_no_alarm_in_10000_frames(reference: Reference) -> None:
    monitor = DriftMonitor(reference, shot=20, has_none=True)
    assert play(monitor, draw(np.random.default_rng(1), 500, none=0.05)) == []


@pytest.mark.parametrize(
    ("change", "statistic"),
    [({"shift": 1.5}, "classes"), ({"scale": 0.2}, "confidence"), ({"none": 0.9}, "none")],
)
def test_a_change_is_seen_within_500_frames_and_its_end_too(
    reference: Reference, change: dict[str, float], statistic: str
) -> None:
    rng = np.random.default_rng(2)
    monitor = DriftMonitor(reference, shot=20, has_none=True)
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


def test_an_alarm_has_the_numbers_of_both_sides(reference: Reference) -> None:
    rng = np.random.default_rng(3)
    monitor = DriftMonitor(reference, shot=1)
    shots = draw(rng, 40, shift=4)
    (_, alarm), *_ = play(monitor, shots, length=1)
    assert alarm.reference == reference.summary
    assert alarm.now.mean_score_percent == summary(shots[: alarm.n_frames]).mean_score_percent
    name, before, now = most_changed(alarm, "abcdef")[0]
    assert name == "a"
    assert now > before + 20


def test_a_p_value_is_that_of_the_plain_test_on_ranks_of_centered_log_scores() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    known, seen = draw(rng, 100), draw(rng, 4)
    reference = Reference(known)

    def rows(images: list[Scored]) -> np.ndarray:
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
    expected = MeanTest(scores).p_value(moved)
    values = reference.values(seen, "classes")
    assert reference.tests["classes"].p_value(values) == pytest.approx(expected, rel=1e-6)


def test_a_still_scene_counts_once(reference: Reference) -> None:
    monitor, small = DriftMonitor(reference, shot=5), np.zeros((16, 16), np.float32)
    (odd,) = draw(np.random.default_rng(6), 1, shift=9)
    assert [monitor.add(odd, lambda: small) for _ in range(2000)] == [[]] * 2000


def test_without_a_reference_it_is_learned_from_the_stream() -> None:
    rng = np.random.default_rng(7)
    monitor = DriftMonitor(None, shot=1, n_learned=200)
    assert play(monitor, draw(rng, 199), length=1) == []
    assert monitor.reference is None
    assert play(monitor, draw(rng, 100), length=1) == []
    assert monitor.reference is not None
    assert monitor.reference.n_images == 200
    assert play(monitor, draw(rng, 40, shift=2), length=1)


def test_one_class_and_two_classes_can_be_watched() -> None:
    rng = np.random.default_rng(8)
    for n_classes in (1, 2):
        known = [Scored(row) for row in softmax(rng.normal(size=(150, n_classes)))]
        monitor = DriftMonitor(Reference(known[:100]), shot=1, has_none=True)
        assert play(monitor, known[100:], length=1) == []
        assert play(monitor, [Scored(known[0].scores, is_none=True)] * 20, length=1)


def test_scores_of_exactly_zero_and_one_are_finite(reference: Reference) -> None:
    sure = Scored(np.eye(N_CLASSES)[0])
    assert np.isfinite(reference.values([sure], "classes")).all()
    assert np.isfinite(reference.values([sure], "confidence")).all()
