"""Accuracy against a slow, obvious version."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.errors import DataError, DivergedError
from kdedge.evaluation.accuracy import evaluate

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def _draw(n_images: int, n_classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n_images, n_classes, generator=generator)
    return logits, torch.randint(n_classes, (n_images,), generator=generator)


def _slow_share(rows: list[list[float]], labels: list[int], classes: list[int]) -> float | None:
    n_right = n = 0
    for row, label in zip(rows, labels, strict=True):
        if label in classes:
            n += 1
            n_right += max(classes, key=lambda c: row[c]) == label
    return 100 * n_right / n if n else None


def _slow_calibration_error(rows: list[list[float]], labels: list[int]) -> float:
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(rows, labels, strict=True):
        exponentials = [math.exp(x - max(row)) for x in row]
        confidence = max(exponentials) / sum(exponentials)
        predicted = exponentials.index(max(exponentials))
        bins.setdefault(int(confidence * 15), []).append((confidence, predicted == label))
    error = 0.0
    for entries in bins.values():
        confidence = sum(c for c, _ in entries) / len(entries)
        accuracy = sum(right for _, right in entries) / len(entries)
        error += len(entries) / len(rows) * abs(confidence - accuracy)
    return 100 * error


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), n_classes=st.integers(2, 7), seed=st.integers(0, 2**31))
def test_every_figure_equals_the_slow_one(n: int, n_classes: int, seed: int) -> None:
    logits, labels = _draw(n, n_classes, seed)
    names = NAMES[:n_classes]
    result = evaluate(logits, labels, class_names=names, split="base-to-novel")
    rows, answers = logits.tolist(), labels.tolist()
    half = math.ceil(n_classes / 2)
    everything = list(range(n_classes))
    base = _slow_share(rows, answers, everything[:half])
    novel = _slow_share(rows, answers, everything[half:])
    assert result.n_images == n
    assert result.all == _slow_share(rows, answers, everything)
    assert (result.base, result.novel) == (base, novel)
    if base is None or novel is None:
        assert result.harmonic_mean is None
    else:
        expected = 0 if base * novel == 0 else 2 / (1 / base + 1 / novel)
        assert result.harmonic_mean == pytest.approx(expected)
    # torchmetrics adds up in float32
    assert result.ece_percent == pytest.approx(_slow_calibration_error(rows, answers), abs=1e-4)
    for c, name in enumerate(names):
        mine = [i for i, label in enumerate(answers) if label == c]
        share = [rows[i].index(max(rows[i])) == c for i in mine]
        assert result.per_class[name] == (100 * sum(share) / len(mine) if mine else None)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 30), seed=st.integers(0, 2**31), order=st.permutations(range(5)))
def test_class_order_permutes_outputs_only(n: int, seed: int, order: list[int]) -> None:
    logits, labels = _draw(n, 5, seed)
    result = evaluate(logits, labels, class_names=NAMES[:5], split="all")
    position = torch.tensor([order.index(c) for c in range(5)])
    other = evaluate(
        logits[:, order], position[labels], class_names=[NAMES[c] for c in order], split="all"
    )
    assert list(other.per_class) == [NAMES[c] for c in order]
    assert other.per_class == result.per_class
    assert other.all == result.all
    assert other.ece_percent == pytest.approx(result.ece_percent, abs=1e-4)


@given(n=st.integers(1, 30), seed=st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_image_order_changes_nothing(n: int, seed: int) -> None:
    logits, labels = _draw(n, 4, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    one = evaluate(logits, labels, class_names=NAMES[:4], split="base-to-novel")
    other = evaluate(logits[order], labels[order], class_names=NAMES[:4], split="base-to-novel")
    assert one.per_class == other.per_class
    assert (one.all, one.base, one.novel) == (other.all, other.base, other.novel)


def test_base_images_compete_among_base_names_only() -> None:
    logits = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0], [9.0, 9.0, 0.0]])
    result = evaluate(logits, torch.tensor([0, 1, 2]), class_names=NAMES[:3], split="base-to-novel")
    assert (result.base, result.novel, result.harmonic_mean, result.all) == (100, 100, 100, 0)


def test_without_a_split_there_is_no_base_and_novel() -> None:
    logits, labels = _draw(9, 4, 1)
    result = evaluate(logits, labels, class_names=NAMES[:4], split="all", selection="validation")
    assert (result.base, result.novel, result.harmonic_mean) == (None, None, None)
    assert (result.split, result.selection) == ("all", "validation")


def test_one_class_alone_is_always_right_and_calibrated() -> None:
    result = evaluate(torch.randn(4, 1), torch.zeros(4).long(), class_names=["ant"], split="all")
    assert (result.all, result.ece_percent) == (100.0, 0.0)


def test_a_certain_and_wrong_model_has_a_calibration_error_of_100() -> None:
    logits = torch.tensor([[1000.0, 0.0]]).repeat(5, 1)
    result = evaluate(logits, torch.ones(5).long(), class_names=NAMES[:2], split="all")
    assert result.ece_percent == 100.0


def test_no_image_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no test image"):
        evaluate(torch.zeros(0, 3), torch.zeros(0).long(), class_names=NAMES[:3], split="all")


def test_scores_that_are_not_finite_are_not_counted_as_answers() -> None:
    logits = torch.tensor([[0.0, 1.0], [math.nan, 0.0]])
    with pytest.raises(DivergedError, match="1 of 2 test images"):
        evaluate(logits, torch.tensor([0, 1]), class_names=NAMES[:2], split="all")
