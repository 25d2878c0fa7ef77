"""Tables of an evaluation, on counts that can be added up by hand."""

from __future__ import annotations

from dataclasses import replace

from kdedge.reporting.accuracy import accuracy_table, class_table, confusion_table
from kdedge.results import EvalDetails, EvalResult

DETAILS = EvalDetails(
    ("cat", "dog", "fox"), 12, ((0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 1, 5), (1, 2, 1)), ()
)


def evaluated(per_class: dict[str, float | None]) -> EvalResult:
    return EvalResult("all", "last", 12, 50.0, None, None, None, 1.0, per_class)


def test_a_confusion_counts_among_the_images_of_its_class() -> None:
    # 4 cats, 8 dogs; and no fox
    table = confusion_table("student", DETAILS)
    assert table is not None
    assert table.rows == [
        ["dog", "cat", "2 of 8", "25.00"],
        ["cat", "dog", "1 of 4", "25.00"],
        ["dog", "fox", "1 of 8", "12.50"],
    ]


def test_classes_have_their_images_and_the_lowest_is_first() -> None:
    own = evaluated({"cat": 75.0, "dog": 62.5, "fox": None})
    teacher, plain = evaluated({"cat": 80.0}), evaluated({"cat": 50.0, "dog": 90.0})
    models = {"student": own, "teacher": teacher, "zero-shot CLIP": plain}
    table = class_table(models, DETAILS)
    assert table.header == ["class", "images", "student", "teacher", "zero-shot CLIP"]
    assert table.rows == [
        ["dog", "8", "62.50", "-", "90.00"],
        ["cat", "4", "75.00", "80.00", "50.00"],
    ]
    assert "Mean over these classes: 68.75 %" in table.caption
    assert class_table(models, None, least=1).rows == [["dog", "62.50", "-", "90.00"]]


def test_always_the_most_frequent_class_is_what_every_model_must_beat() -> None:
    own = replace(evaluated({"cat": 0.0, "dog": 75.0}), largest_class_percent=66.6)
    table = accuracy_table([("student", own)])
    assert table.header == ["model", "accuracy", "mean over classes"]
    assert table.rows == [
        ["student", "50.00", "37.50"],
        ["always the most frequent class", "66.60", "50.00"],
    ]
