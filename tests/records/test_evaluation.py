"""Records survive JSON to the last digit, and damaged ones say what is wrong."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from kdedge.errors import DataError
from kdedge.records.evaluation import (
    EvalResult,
    ParityResult,
    WorstImage,
    harmonic_mean,
    on_same_images,
)
from kdedge.records.record import parse_record

RESULT = EvalResult(
    split="base-to-novel",
    selection="validation",
    n_images=3,
    all=200 / 3,
    base=100 / 3,
    novel=100.0,
    harmonic_mean=50.0,
    ece_percent=1.23456789012345,
    per_class={"b": 200 / 3, "a": None},
)


PARITY = ParityResult(
    n_images=3,
    n_labeled=2,
    n_nonfinite=1,
    agreement_percent=200 / 3,
    mean_softmax_distance=1 / 3,
    max_softmax_distance=1.0,
    accuracy_percent=50.0,
    reference_accuracy_percent=50.0,
    accuracy_drop=0.0,
    worst=(WorstImage("b.jpg", "cat", None, 1.0), WorstImage("a.jpg", "cat", "cat", 1 / 7)),
    images="3 images",
    runtime="onnxruntime 1.24.4 CPU",
)


def test_the_mean_over_classes_counts_a_class_of_which_no_image_is_right() -> None:
    result = replace(RESULT, per_class={"never": 0.0, "always": 100.0, "untested": None})
    assert result.mean_over_classes == 50.0


def read(record_type: type, values: Any) -> Any:
    return parse_record(record_type, json.dumps(values), where="x.json", remedy="Measure again.")


@pytest.mark.parametrize("record", [RESULT, PARITY])
def test_a_record_survives_json_without_loss(record: Any) -> None:
    assert read(type(record), record.to_dict()) == record


@pytest.mark.parametrize(
    ("record", "key", "values"),
    [
        (RESULT, "split", ["both"]),
        (RESULT, "selection", ["first"]),
        (RESULT, "n_images", [2.5, True]),
        (RESULT, "all", [100.1, None]),
        (RESULT, "base", ["33"]),
        (RESULT, "novel", [float("nan")]),
        (RESULT, "ece_percent", [-1.0]),
        (RESULT, "per_class", [[1.0], {"a": 101}]),
        (PARITY, "n_images", [0]),
        (PARITY, "n_nonfinite", [-1]),
        (PARITY, "agreement_percent", [100.5, None, 10**400]),
        (PARITY, "mean_softmax_distance", [1.5, True]),
        (PARITY, "reference_accuracy_percent", ["50"]),
        (PARITY, "accuracy_drop", [-100.5, float("inf")]),
        (PARITY, "worst", [None]),
        (PARITY, "images", [3]),
        (PARITY, "runtime", [None]),
    ],
)
def test_a_wrong_value_is_named(record: Any, key: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(DataError, match=key):
            read(type(record), {**record.to_dict(), key: value})


def test_missing_keys_are_named_and_unknown_ones_ignored() -> None:
    record = RESULT.to_dict() | {"f1": 3}
    assert read(EvalResult, record) == RESULT
    del record["novel"]
    with pytest.raises(DataError, match=r"^x\.json: novel: Field required\.\n"):
        read(EvalResult, record)


@pytest.mark.parametrize(
    ("base", "novel", "expected"),
    [(80.0, 60.0, 9600 / 140), (50.0, 50.0, 50.0), (0.0, 60.0, 0.0), (60.0, 0.0, 0.0)],
)
def test_the_harmonic_mean_is_zero_where_a_half_is(
    base: float, novel: float, expected: float
) -> None:
    assert harmonic_mean(base, novel) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("a.jpg", "should be an object"),
        ({"image": "a.jpg"}, "reference_class: Field required"),
        (asdict(WorstImage("a", "b", "c", 0.5)) | {"distance": 2}, "distance"),
        (asdict(WorstImage("a", "b", "c", 0.5)) | {"predicted_class": 3}, "predicted_class"),
        (asdict(WorstImage("a", "b", "c", 0.5)) | {"reference_class": None}, "reference_class"),
    ],
)
def test_a_wrong_worst_image_is_named(entry: Any, expected: str) -> None:
    with pytest.raises(DataError, match=rf"worst\.0.*{expected}"):
        read(ParityResult, {**PARITY.to_dict(), "worst": [entry]})


def test_results_of_another_split_are_not_compared() -> None:
    other = replace(RESULT, split="all")
    assert on_same_images({"one": RESULT, "other": other}, RESULT) == {"one": RESULT}


def test_accuracies_print_and_show_as_a_table() -> None:
    assert str(RESULT).splitlines() == [
        "test images   base   novel     HM    all  calibration error",
        "3            33.33  100.00  50.00  66.67               1.23",
    ]
    page = replace(RESULT, split="all", base=None, novel=None, harmonic_mean=None)._repr_html_()
    assert page == (
        '<table><tr><th>test images</th><th class="n">accuracy</th>'
        '<th class="n">calibration error</th></tr>'
        '<tr><td>3</td><td class="n">66.67</td><td class="n">1.23</td></tr></table>'
    )
