"""Two classifiers' answers against a plain count, and McNemar's test against all outcomes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge.inference.comparison import (
    ComparedImage,
    ComparedModel,
    LabeledComparison,
    compare_predictions,
    mcnemar_p,
    predicted_class,
)
from kdedge.inference.results import ClassScore, NonFiniteLogits, Prediction

NAMES = ("cat", "dog", "fox")


def answered(old: str | None, new: str | None, label: str | None = None) -> ComparedImage:
    """An image; None: none of the classes."""
    return ComparedImage("x.jpg", old or "none", 50.0, new or "none", 50.0, label)


def compared(*images: ComparedImage, new_names: tuple[str, ...] = NAMES) -> Any:
    model = ComparedModel("model.onnx", "fp32", "a runtime", 3)
    return compare_predictions(
        images, model, model, old_names=NAMES, new_names=new_names, unreadable=()
    )


@pytest.mark.parametrize("n", range(9))
def test_the_p_value_is_the_share_of_outcomes_that_are_at_least_as_uneven(n: int) -> None:
    for b in range(n + 1):
        outcomes = list(itertools.product((0, 1), repeat=n))
        uneven = [o for o in outcomes if abs(2 * sum(o) - n) >= abs(2 * b - n)]
        assert mcnemar_p(b, n - b) == len(uneven) / len(outcomes)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 6), (40, 43), (1200, 1000), (5, 20_000)])
def test_it_is_that_of_scipys_binomial_test(b: int, c: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert mcnemar_p(b, c) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_p(b, c) == mcnemar_p(c, b)


_answers = st.sampled_from([*NAMES, None])


@given(st.lists(st.tuples(_answers, _answers, _answers), min_size=1, max_size=40))
def test_counts_are_those_of_a_plain_count(rows: list[tuple[str | None, ...]]) -> None:
    found = compared(*(answered(*row) for row in rows))
    assert found.n_images == len(rows)
    assert found.agreement_percent == 100 * sum(a == b for a, b, _ in rows) / len(rows)
    assert len(found.changed) == sum(a != b for a, b, _ in rows)
    for name, counts in found.classes.items():
        answer = None if name == "none" else name
        assert counts == tuple(sum(r[i] == answer for r in rows) for i in (0, 1))
    labeled = [row for row in rows if row[2] is not None]
    if not labeled:
        assert found.labeled is None
        return
    old, new = (100 * sum(r[i] == r[2] for r in labeled) / len(labeled) for i in (0, 1))
    assert found.labeled.old_accuracy_percent == old
    assert found.labeled.new_accuracy_percent == new
    assert found.labeled.n_only_old_right == sum(a == c != b for a, b, c in labeled)
    assert found.labeled.n_only_new_right == sum(b == c != a for a, b, c in labeled)


def test_scores_are_compared_with_and_without_their_sign() -> None:
    images = [
        ComparedImage("a", "cat", 60.0, "cat", 70.0),
        ComparedImage("b", "cat", 60.0, "dog", 30.0),
    ]
    found = compared(*images)
    assert (found.mean_score_difference, found.mean_absolute_score_difference) == (-10.0, 20.0)
    no_scores = ComparedImage("a", "cat", None, "cat", 70.0)
    assert compared(no_scores).mean_score_difference is None


def test_none_is_an_answer_and_a_missing_answer_is_none_of_them() -> None:
    none = predicted_class(Prediction("x", (ClassScore("cat", 40.0),), is_none=True))
    lost = predicted_class(NonFiniteLogits("x", "NaN"))
    assert (none, lost) == (("none", None), (None, None))
    assert not ComparedImage("x", *none, *none).is_changed
    for old, new in ((lost, lost), (none, ("cat", 40.0))):
        assert ComparedImage("x", *old, *new).is_changed


def test_classes_that_only_one_has_are_named_and_left_out_of_agreement_and_accuracy() -> None:
    images = [
        answered("cat", "cat", "cat"),
        answered("dog", "owl", "dog"),  # the new answer is a class that the old one lacks
        answered("fox", "cat", "owl"),  # so is the label
    ]
    found = compared(*images, new_names=("owl", "dog", "cat"))
    assert (found.only_old, found.only_new, found.n_shared) == (("fox",), ("owl",), 2)
    assert (found.n_with_unshared_class, found.n_agree, found.agreement_percent) == (2, 1, 100.0)
    assert len(found.changed) == 2
    assert (found.labeled.n_labeled, found.labeled.n_left_out) == (2, 1)
    assert (found.labeled.new_accuracy_percent, found.labeled.n_only_old_right) == (50.0, 1)
    assert list(found.classes) == ["cat", "dog", "fox", "owl"]


@pytest.mark.parametrize(
    ("b", "c", "verdict", "said"),
    [
        (0, 0, "no difference shown", "exactly as good"),
        (5, 0, "no difference shown", "Fewer than 6 cannot show one: compare on more"),
        (6, 0, "worse", "The new one is worse: of the 6 images that only one of them gets right"),
        (0, 6, "better", "The new one is better"),
        (1, 0, "no difference shown", "of the one image that only one of them gets right"),
        (10, 12, "no difference shown", "No difference is shown: of the 22 images"),
    ],
)
def test_the_verdict_is_a_sentence(b: int, c: int, verdict: str, said: str) -> None:
    labeled = LabeledComparison(100, 0, b, c, 50.0, 60.0, mcnemar_p(b, c))
    assert labeled.verdict == verdict
    assert said in labeled.sentence()
