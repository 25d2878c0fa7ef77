"""Records survive JSON to the last digit, and damaged ones say what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kdedge.errors import DataError
from kdedge.results import EvalResult, harmonic_mean

RESULT = EvalResult(
    split="base-to-novel",
    selection="validation",
    n_images=3,
    all=200 / 3,
    base=100 / 3,
    novel=100.0,
    harmonic_mean=50.0,
    ece_percent=1.23456789012345,
    per_class={"b": 100 / 3, "a": None},
)


def test_a_record_survives_json_without_loss() -> None:
    again = EvalResult.from_dict(json.loads(json.dumps(RESULT.to_dict())))
    assert again == RESULT
    assert list(again.per_class) == ["b", "a"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "both"),
        ("selection", "test"),
        ("n_images", 2.5),
        ("n_images", True),
        ("all", 100.1),
        ("all", None),
        ("base", "33"),
        ("novel", float("nan")),
        ("ece_percent", -1.0),
        ("per_class", [1.0]),
        ("per_class", {"a": 101}),
    ],
)
def test_a_wrong_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(DataError, match=key):
        EvalResult.from_dict({**RESULT.to_dict(), key: value})


def test_missing_and_unknown_keys_are_named() -> None:
    record = RESULT.to_dict()
    del record["novel"]
    record["f1"] = 3
    with pytest.raises(DataError, match=r"missing \['novel'\], unknown \['f1'\]"):
        EvalResult.from_dict(record)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_an_error(value: object) -> None:
    with pytest.raises(DataError, match="JSON object"):
        EvalResult.from_dict(value)


@pytest.mark.parametrize(
    ("base", "novel", "expected"),
    [(80.0, 60.0, 9600 / 140), (50.0, 50.0, 50.0), (0.0, 60.0, 0.0), (60.0, 0.0, 0.0)],
)
def test_the_harmonic_mean_is_zero_where_a_half_is(
    base: float, novel: float, expected: float
) -> None:
    assert harmonic_mean(base, novel) == expected
