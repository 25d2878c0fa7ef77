"""Confusions and calibration bins against a slow, obvious version and torchmetrics' error."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdedge.errors import DataError
from kdedge.evaluation.accuracy import N_BINS, evaluate, evaluation_details
from kdedge.records import parse_record
from kdedge.results import EvalDetails

NAMES = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def _draw(
    n_images: int, n_classes: int, seed: int, spread: float
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(n_images, n_classes, generator=generator)
    return logits, torch.randint(n_classes, (n_images,), generator=generator)


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
    details = evaluation_details(logits, labels, class_names=names)
    expected = evaluate(logits, labels, class_names=names, split="all").ece_percent
    # torchmetrics adds up all bins in float32, empty ones too
    gap, share = torch.zeros(N_BINS + 1), torch.zeros(N_BINS + 1)
    for found in details.bins:
        confidence, accuracy = (
            torch.tensor(value / 100)
            for value in (found.confidence_percent, found.accuracy_percent)
        )
        place = int(torch.bucketize(confidence, torch.linspace(0, 1, N_BINS + 1), right=True)) - 1
        gap[place] = (accuracy - confidence).abs()
        share[place] = torch.tensor(float(found.n_images)) / n
    assert min(100.0, 100 * float(torch.sum(gap * share))) == expected
    assert details.ece_percent == pytest.approx(expected, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), n_classes=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_the_confusion_counts_every_image_once(n: int, n_classes: int, seed: int) -> None:
    logits, labels = _draw(n, n_classes, seed, 3.0)
    details = evaluation_details(logits, labels, class_names=NAMES[:n_classes])
    slow: dict[tuple[int, int], int] = {}
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        pair = label, row.index(max(row))
        slow[pair] = slow.get(pair, 0) + 1
    assert details.confusion == tuple((*pair, count) for pair, count in sorted(slow.items()))
    result = evaluate(logits, labels, class_names=NAMES[:n_classes], split="all")
    assert details.accuracy_percent == pytest.approx(result.all)


def test_one_class_alone_is_one_bin_that_is_right() -> None:
    details = evaluation_details(torch.randn(4, 1), torch.zeros(4).long(), class_names=["ant"])
    assert details.confusion == ((0, 0, 4),)
    assert [(b.n_images, b.confidence_percent, b.accuracy_percent) for b in details.bins] == [
        (4, 100, 100)
    ]


def _read(values: object) -> EvalDetails:
    return parse_record(EvalDetails, json.dumps(values), where="x.json", remedy="Measure again.")


def test_the_record_survives_json() -> None:
    details = evaluation_details(*_draw(50, 7, 1, 3.0), class_names=NAMES)
    assert _read(details.to_dict()) == details


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("confusion", [[0, 0, True], [0, 1, 3]], r"confusion\[0\]\[2\] is True"),
        ("confusion", "x", "a valid array"),
        (
            "bins",
            [{"n_images": 4, "confidence_percent": 101, "accuracy_percent": 0}],
            "at most 100",
        ),
        ("class_names", [1], r"class_names\[0\] is 1 \(int\); expected a valid string"),
        ("n_images", 0, "at least 1"),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: object, expected: str) -> None:
    details = evaluation_details(*_draw(4, 7, 1, 3.0), class_names=NAMES)
    record = json.loads(json.dumps(details.to_dict())) | {key: value}
    with pytest.raises(DataError, match=expected) as caught:
        _read(record)
    assert str(caught.value).startswith(f"x.json: {key}")
