"""Tables of an evaluation, on counts that can be added up by hand."""

from __future__ import annotations

from typing import Any

from kdedge.reporting.accuracy import confusion_blocks, gain_blocks
from kdedge.reporting.blocks import Table
from kdedge.results import EvalDetails, EvalResult


def evaluated(per_class: dict[str, float | None]) -> EvalResult:
    return EvalResult("all", "last", 12, 50.0, None, None, None, 1.0, per_class)


def tables(blocks: Any) -> list[Table]:
    return [block for block in blocks if isinstance(block, Table)]


def test_a_confusion_counts_among_the_images_of_its_class() -> None:
    # 4 cats, 8 dogs; and no fox
    details = EvalDetails(
        ("cat", "dog", "fox"), 12, ((0, 0, 3), (0, 1, 1), (1, 0, 2), (1, 1, 5), (1, 2, 1)), ()
    )
    (table,) = tables(confusion_blocks("student", details, "confusion"))
    assert table.rows == [
        ["dog", "cat", "2", "25.00"],
        ["cat", "dog", "1", "25.00"],
        ["dog", "fox", "1", "12.50"],
    ]


def test_a_gain_is_what_the_run_adds_to_zero_shot_and_the_largest_is_first() -> None:
    own = evaluated({"lost": 40.0, "same": 100.0, "won": 75.0, "too": 55.0, "unseen": None})
    plain = evaluated({"lost": 60.0, "same": 100.0, "won": 50.0, "too": 50.0, "unseen": None})
    plot, *others = gain_blocks(own, plain, "gains")
    assert "2 classes gain, 1 lose, 1 stay" in plot.caption
    assert tables(others)[-1].rows == [
        ["won", "50.00", "75.00", "+25.00"],
        ["too", "50.00", "55.00", "+5.00"],
        ["same", "100.00", "100.00", "+0.00"],
        ["lost", "60.00", "40.00", "-20.00"],
    ]


def test_the_teacher_stands_beside_each_gain() -> None:
    own, plain = evaluated({"won": 75.0, "new": 5.0}), evaluated({"won": 50.0, "new": 0.0})
    plot, *others = gain_blocks(own, plain, "gains", evaluated({"won": 80.0}))
    assert "Triangles: the teacher's" in plot.caption
    assert tables(others)[-1].rows == [
        ["won", "50.00", "75.00", "+25.00", "80.00"],
        ["new", "0.00", "5.00", "+5.00", "-"],
    ]
    plot.picture  # noqa: B018 - a class that the teacher's record lacks has no mark
