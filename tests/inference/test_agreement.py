"""Agreement and distances equal those counted by hand, and do not depend on any order."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.errors import DivergedError
from kdedge.inference.agreement import N_WORST, measure_parity
from kdedge.records.evaluation import ParityResult, WorstImage
from kdedge.records.record import parse_record

NAMES = ("cat", "dog")


def log_odds(*scores: float) -> np.ndarray:
    """[N, 2] logits whose softmax has these scores for the first class."""
    return np.array([[math.log(p / (1 - p)), 0.0] for p in scores], dtype=np.float32)


def run(reference: np.ndarray, logits: np.ndarray, **changes: Any) -> ParityResult:
    n_images, n_classes = reference.shape
    arguments: dict[str, Any] = {
        "keys": [f"{i:04d}.jpg" for i in range(n_images)],
        "labels": [None] * n_images,
        "class_names": NAMES if n_classes == 2 else [f"class {i}" for i in range(n_classes)],
        "images": "test images",
        "runtime": "none",
        "head": "scores",
    }
    return measure_parity(reference, logits, **(arguments | changes))


def again(result: ParityResult) -> ParityResult:
    """The result after a way through JSON."""
    text = json.dumps(result.to_dict())
    return parse_record(ParityResult, text, where="x.json", remedy="Compare again.")


def test_figures_equal_those_counted_by_hand() -> None:
    result = run(
        log_odds(0.9, 0.6, 0.2, 0.8),
        log_odds(0.8, 0.4, 0.2, 0.7),
        labels=[0, 0, 1, None],
    )
    assert result.n_images == 4
    assert result.n_labeled == 3
    assert result.n_nonfinite == 0
    assert result.agreement_percent == 75.0
    # Of two classes the distance is the difference of either score; float32 logits: 1e-7
    assert result.mean_softmax_distance == pytest.approx((0.1 + 0.2 + 0 + 0.1) / 4, abs=1e-7)
    assert result.max_softmax_distance == pytest.approx(0.2, abs=1e-7)
    assert result.reference_accuracy_percent == 100.0
    assert result.accuracy_percent == 200 / 3
    assert result.accuracy_drop == 100 / 3
    assert result.per_class == {NAMES[0]: 50.0, NAMES[1]: 100.0}
    assert (result.images, result.runtime) == ("test images", "none")


def test_without_labels_there_is_no_accuracy() -> None:
    result = run(log_odds(0.4), log_odds(0.6))
    assert result.n_labeled == 0
    assert result.accuracy_percent is None
    assert result.reference_accuracy_percent is None
    assert result.accuracy_drop is None


def test_shares_are_rounded_once_so_that_a_gate_of_98_percent_can_be_met_exactly() -> None:
    scores = np.full(50, 0.9)
    other = scores.copy()
    other[7] = 0.1
    assert run(log_odds(*scores), log_odds(*other)).agreement_percent == 98.0


def test_the_worst_are_the_disagreements_and_then_the_largest_distances() -> None:
    result = run(
        log_odds(0.99, 0.51, 0.3, 0.55, 0.5001),
        log_odds(0.60, 0.49, 0.3, 0.45, 0.5001),
        keys=["far.jpg", "near.jpg", "same.jpg", "other.jpg", "too.jpg"],
    )
    assert [
        (entry.image, entry.reference_class, entry.predicted_class) for entry in result.worst
    ] == [
        ("other.jpg", "cat", "dog"),
        ("near.jpg", "cat", "dog"),
        ("far.jpg", "cat", "cat"),
    ]
    assert result.worst[2].distance == pytest.approx(0.39, abs=1e-6)


def test_at_most_ten_are_listed_and_ties_go_by_key() -> None:
    n_images = 25
    keys = [f"{(7 * i) % n_images:02d}.jpg" for i in range(n_images)]
    result = run(log_odds(*[0.9] * n_images), log_odds(*[0.1] * n_images), keys=keys)
    assert [entry.image for entry in result.worst] == [f"{i:02d}.jpg" for i in range(N_WORST)]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_count_as_wrong_and_are_reported(bad: float) -> None:
    reference, logits = log_odds(0.9, 0.9, 0.9), log_odds(0.9, 0.9, 0.9)
    logits[1, 1] = bad  # the first class would still be the largest, or argmax the NaN
    result = run(reference, logits, labels=[0, 0, 0], keys=["a", "b", "c"])
    assert result.n_nonfinite == 1
    assert result.agreement_percent == 200 / 3
    assert result.accuracy_percent == 200 / 3
    assert result.max_softmax_distance == 1.0
    assert result.mean_softmax_distance == 1 / 3
    assert result.worst == (WorstImage("b", "cat", None, 1.0),)
    assert again(result) == result


def test_where_only_the_ranking_counts_there_are_no_distances() -> None:
    reference, logits = log_odds(0.9, 0.6), 100 * log_odds(0.8, 0.4)
    result = run(reference, logits, head="argmax", labels=[0, 0])
    assert result.agreement_percent == 50.0
    assert result.accuracy_drop == 50.0
    assert result.mean_softmax_distance is None
    assert result.max_softmax_distance is None
    assert result.worst == (WorstImage("0001.jpg", "cat", "dog", None),)
    assert again(result) == result


def test_logits_far_apart_have_the_largest_distance_and_no_overflow() -> None:
    assert run(np.array([[1e4, -1e4]]), np.array([[-1e4, 1e4]])).max_softmax_distance == 1.0


def test_no_distance_is_above_1_by_rounding() -> None:
    reference, logits = np.random.default_rng(0).standard_normal((2, 300, 37)).astype(np.float32)
    reference[:, :18] += 200
    logits[:, 18:] += 200
    assert run(reference, logits).max_softmax_distance == 1.0


def test_many_images_and_half_precision_give_the_same_as_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((600, 5)).astype(np.float32)
    logits = (reference + rng.standard_normal((600, 5)) / 4).astype(np.float16)
    distances = []
    for row, other in zip(reference.astype(float), logits.astype(float), strict=True):
        p, q = np.exp(row) / np.exp(row).sum(), np.exp(other) / np.exp(other).sum()
        distances.append(max(p[list(part)].sum() - q[list(part)].sum() for part in subsets(5)))
    result = run(reference, logits)
    assert result.mean_softmax_distance == pytest.approx(np.mean(distances), abs=1e-12)
    assert result.max_softmax_distance == pytest.approx(np.max(distances), abs=1e-12)
    assert result.agreement_percent == 100 * (reference.argmax(1) == logits.argmax(1)).sum() / 600


def subsets(n: int) -> list[list[int]]:
    """All sets of classes: total variation is the largest difference of probability of one."""
    return [[i for i in range(n) if mask >> i & 1] for mask in range(2**n)]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, list[int | None]]:
    n_images, n_classes = draw(st.integers(1, 8)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    reference = rng.permutation(n_images * n_classes).reshape(n_images, n_classes) / 4
    logits = reference + draw(st.sampled_from([0, 0.3, 3])) * rng.standard_normal(reference.shape)
    labels = [draw(st.none() | st.integers(0, n_classes - 1)) for _ in range(n_images)]
    return reference, logits, labels


@given(pairs(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_the_images_changes_nothing(pair: Any, random: Any) -> None:
    reference, logits, labels = pair
    keys = [f"{i}.jpg" for i in range(len(labels))]
    order = list(range(len(labels)))
    random.shuffle(order)
    assert run(
        reference[order],
        logits[order],
        labels=[labels[i] for i in order],
        keys=[keys[i] for i in order],
    ) == run(reference, logits, labels=labels, keys=keys)


@given(pairs())
@settings(max_examples=40, deadline=None)
def test_equal_logits_agree_fully_and_have_no_worst_image(pair: Any) -> None:
    reference, _, labels = pair
    result = run(reference, reference.copy(), labels=labels)
    assert result.agreement_percent == 100.0
    assert result.mean_softmax_distance == result.max_softmax_distance == 0.0
    assert result.accuracy_drop in (0.0, None)
    assert result.worst == ()


def test_a_reference_that_is_not_finite_is_named() -> None:
    with pytest.raises(DivergedError, match="float32 model gives NaN or infinity for 0001"):
        run(np.array([[0, 1], [np.nan, 0]]), log_odds(0.9, 0.1), class_names=NAMES)
