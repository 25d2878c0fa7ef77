"""The page of a comparison: its tables are bounded, and the most telling pictures are kept."""

from __future__ import annotations

import pytest
from PIL import Image

from kdedge.evaluation.answers import Answer, AnsweredImage, compare_answers

comparison = pytest.importorskip("kdedge.reporting.comparison")


def _changed(number: int, old: str, new: str) -> AnsweredImage:
    return AnsweredImage(f"{number:04d}.jpg", Answer(old, 50.0), Answer(new, number / 20), "cat")


def test_tables_have_at_most_a_thousand_rows_and_say_where_the_others_are() -> None:
    images = [_changed(number, "cat", "dog") for number in range(1003)]
    names = [f"class {number}" for number in range(1200)] + ["cat", "dog"]
    found = compare_answers(images, old_names=names, new_names=names)
    facts = [("old", "a"), ("new", "b")]
    page = comparison.page_of_comparison(found, facts, comparison.Thumbnails())
    assert page.count(".jpg") == 1000
    assert "3 more are in changed.csv" in page
    assert page.count("<tr>") == 2 + 2 * 1000
    assert ">cat<" in page  # the classes with the largest difference come first


def test_pictures_are_of_what_became_wrong_then_right_with_the_highest_new_score() -> None:
    kept = comparison.Thumbnails()
    black = Image.new("RGB", (8, 8))
    for number in range(50):
        for old, new in (("dog", "owl"), ("dog", "cat"), ("cat", "dog")):
            kept.offer(_changed(number, old, new), black)
    taken = [one for one, _ in kept.taken()]
    assert [one.became for one in taken] == ["wrong"] * 50 + ["right"] * 10
    assert [one.image for one in taken[:50]] == [f"{n:04d}.jpg" for n in reversed(range(50))]
    assert [one.image for one in taken[50:]] == [f"{n:04d}.jpg" for n in reversed(range(40, 50))]
    assert black.size == (8, 8)
