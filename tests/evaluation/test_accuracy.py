"""Accuracy against a slow, obvious version."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdedge.errors import DataError
from kdedge.evaluation.accuracy import (
    accuracy_result,
    evaluation_details,
    temperature_of_labels,
    temperature_of_share,
)
from kdedge.records.evaluation import CalibrationBin, EvalDetails
from kdedge.records.record import parse_record

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def _draw(
    n_images: int, n_classes: int, seed: int, spread: float = 3.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n_images, n_classes, generator=generator)
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
        number = 15 if np.float32(confidence) == 1 else int(confidence * 15)
        bins.setdefault(number, []).append((confidence, predicted == label))
    error = 0.0
    for entries in bins.values():
        confidence = sum(c for c, _ in entries) / len(entries)
        accuracy = sum(right for _, right in entries) / len(entries)
        error += len(entries) / len(rows) * abs(confidence - accuracy)
    return 100 * error


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 40), n_classes=st.integers(2, 7), seed=st.integers(0, 2**31))
@example(n=14, n_classes=2, seed=296)  # a confidence that rounds to 1 in float32
def test_every_figure_equals_the_slow_one(n: int, n_classes: int, seed: int) -> None:
    logits, labels = _draw(n, n_classes, seed)
    names = NAMES[:n_classes]
    result = accuracy_result(logits, labels, class_names=names, split="base-to-novel")
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
    assert result.ece_percent == pytest.approx(_slow_calibration_error(rows, answers), abs=1e-9)
    halves = everything[:half], everything[half:]
    own = [next(part for part in halves if label in part) for label in answers]
    details = evaluation_details(logits, labels, class_names=names, split="base-to-novel")
    shares = [
        _slow_share([row], [c], part) for row, c, part in zip(rows, answers, own, strict=True)
    ]
    bits = f"{int(details.right or '', 16):0{n}b}"
    assert bits == "".join("1" if share else "0" for share in shares)
    for c, name in enumerate(names):
        mine = [i for i, label in enumerate(answers) if label == c]
        share = [rows[i].index(max(rows[i])) == c for i in mine]
        assert result.per_class[name] == (100 * sum(share) / len(mine) if mine else None)


def test_base_images_compete_among_base_names_only() -> None:
    logits = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0], [9.0, 9.0, 0.0]])
    result = accuracy_result(
        logits, torch.tensor([0, 1, 2]), class_names=NAMES[:3], split="base-to-novel"
    )
    assert (result.base, result.novel, result.harmonic_mean, result.all) == (100, 100, 100, 0)


def test_without_a_split_there_is_no_base_and_novel() -> None:
    logits, labels = _draw(9, 4, 1)
    result = accuracy_result(
        logits, labels, class_names=NAMES[:4], split="all", selection="validation"
    )
    assert (result.base, result.novel, result.harmonic_mean) == (None, None, None)
    assert (result.split, result.selection) == ("all", "validation")


def test_one_class_alone_is_always_right_calibrated_and_one_bin() -> None:
    given = torch.randn(4, 1), torch.zeros(4).long()
    result = accuracy_result(*given, class_names=["ant"], split="all")
    assert (result.all, result.ece_percent) == (100.0, 0.0)
    details = evaluation_details(*given, class_names=["ant"], split="all")
    assert details.confusion == ((0, 0, 4),)
    assert details.bins == (CalibrationBin(4, 100, 100),)


def test_a_certain_and_wrong_model_has_a_calibration_error_of_100() -> None:
    logits = torch.tensor([[1000.0, 0.0]]).repeat(5, 1)
    result = accuracy_result(logits, torch.ones(5).long(), class_names=NAMES[:2], split="all")
    assert result.ece_percent == 100.0


# Temperatures


GRID = np.exp(np.linspace(np.log(0.2), np.log(15), 4001))
STEP = GRID[1] / GRID[0]


def draw(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 200 images and 5 classes, of which about half are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, 200)
    logits = rng.normal(0, 2, (200, 5))
    logits[np.arange(200), labels] += 1.5
    return logits.astype(np.float32), labels


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_labels_give_the_temperature_with_the_lowest_likelihood_loss(factor: float) -> None:
    logits, labels = draw()
    logits = np.float32(factor) * logits

    def loss(temperature: float) -> float:
        of_label = probabilities(logits, temperature)[np.arange(len(labels)), labels]
        return float(-np.log(of_label).mean())

    best = GRID[np.argmin([loss(one) for one in GRID])]
    found = temperature_of_labels(logits, labels)
    assert found is not None
    assert best / STEP <= found <= best * STEP


@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_the_mean_confidence_becomes_the_share(share: float) -> None:
    logits, _ = draw()
    found = temperature_of_share(logits, share)
    assert found is not None
    assert probabilities(logits, found).max(axis=1).mean() == pytest.approx(share, abs=1e-9)


def test_scaled_logits_have_a_scaled_temperature() -> None:
    logits, labels = draw()
    assert temperature_of_labels(4 * logits, labels) == pytest.approx(
        4 * temperature_of_labels(logits, labels), rel=1e-6
    )


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_a_share_that_no_temperature_gives_has_none(share: float) -> None:
    """Five classes have a confidence of a fifth or more."""
    assert temperature_of_share(draw()[0], share) is None


def test_labels_that_are_all_right_or_useless_have_no_temperature() -> None:
    logits, _ = draw()
    assert temperature_of_labels(logits, logits.argmax(axis=1)) is None
    assert temperature_of_labels(logits, logits.argmin(axis=1)) is None
    assert temperature_of_labels(logits[:, :1], np.zeros(200, np.int64)) is None


# Confusions and calibration bins


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 300),
    n_classes=st.integers(2, 7),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.5, 3.0, 40.0]),  # the last: confidences that round to 1
)
def test_the_bins_give_the_calibration_error_exactly(
    n: int, n_classes: int, seed: int, spread: float
) -> None:
    logits, labels = _draw(n, n_classes, seed, spread)
    names = NAMES[:n_classes]
    details = evaluation_details(logits, labels, class_names=names, split="all")
    expected = accuracy_result(logits, labels, class_names=names, split="all").ece_percent
    assert details.ece_percent == pytest.approx(expected, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), n_classes=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_the_confusion_counts_every_image_once(n: int, n_classes: int, seed: int) -> None:
    logits, labels = _draw(n, n_classes, seed)
    details = evaluation_details(logits, labels, class_names=NAMES[:n_classes], split="all")
    slow: dict[tuple[int, int], int] = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        pair = label, row.index(max(row))
        slow[pair] = slow.get(pair, 0) + 1
    assert details.confusion == tuple((*pair, count) for pair, count in sorted(slow.items()))
    result = accuracy_result(logits, labels, class_names=NAMES[:n_classes], split="all")
    assert details.accuracy_percent == pytest.approx(result.all)


def test_images_that_only_one_of_two_models_gets_right_are_counted() -> None:
    details = evaluation_details(*_draw(4, 3, 1), class_names=NAMES[:3], split="all")
    first, other = (replace(details, right=right) for right in ("d", "3"))  # 1101 and 0011
    assert (first.only_right(other), other.only_right(first)) == ((2, 1), (1, 2))
    assert first.only_right(replace(other, right=None)) is None


def _read(values: object) -> EvalDetails:
    return parse_record(EvalDetails, json.dumps(values), where="x.json", remedy="Measure again.")


def test_the_record_survives_json() -> None:
    details = evaluation_details(*_draw(50, 7, 1), class_names=NAMES, split="all")
    assert _read(details.to_dict()) == details


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("confusion", [[0, 0, True], [0, 1, 3]], r"confusion\.0\.2: .*got True"),
        ("confusion", "x", "a valid array"),
        (
            "bins",
            [{"n_images": 4, "confidence_percent": 101, "accuracy_percent": 0}],
            "less than or equal to 100",
        ),
        ("class_names", [1], r"class_names\.0: .*a valid string, got 1"),
        ("n_images", 0, "greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: object, expected: str) -> None:
    details = evaluation_details(*_draw(4, 7, 1), class_names=NAMES, split="all")
    record = json.loads(json.dumps(details.to_dict())) | {key: value}
    with pytest.raises(DataError, match=expected) as caught:
        _read(record)
    assert str(caught.value).startswith(f"x.json: {key}")
