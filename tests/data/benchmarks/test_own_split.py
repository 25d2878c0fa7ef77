"""The sets' own rules, against slow versions of them."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from kdedge.data.benchmarks._own_split import in_three, with_official_test

SIZES = st.lists(st.integers(1, 45), min_size=1, max_size=6)


def paths(label: int, n: int, kind: str = "") -> list[str]:
    return [f"{label}/{kind}{i}.jpg" for i in range(n)]


@given(SIZES)
def test_three_parts_are_half_a_fifth_and_the_rest_of_each_class(sizes: list[int]) -> None:
    images = {label: paths(label, n) for label, n in enumerate(sizes)}
    split = in_three([f"class {label}" for label in images], images)
    for label, n in enumerate(sizes):
        found = {
            part: [path for path, its in rows if its == label] for part, rows in split.parts.items()
        }
        # CoOp, datasets/dtd.py: both rounded half to even
        n_train, n_val = round(0.5 * n), round(0.2 * n)
        expected = {"train": n_train, "val": n_val, "test": n - n_train - n_val}
        assert {part: len(rows) for part, rows in found.items()} == expected
        assert sorted(path for part in found.values() for path in part) == sorted(images[label])


@given(SIZES)
def test_official_test_images_stay_and_a_fifth_of_the_others_is_for_val(sizes: list[int]) -> None:
    training = [(path, label) for label, n in enumerate(sizes) for path in paths(label, n)]
    test = [(path, label) for label, n in enumerate(sizes) for path in paths(label, n, "test")]
    split = with_official_test(["a", "b", "c", "d", "e", "f"][: len(sizes)], training[::-1], test)
    assert split.parts["test"] == tuple(test)
    assert sorted([*split.parts["train"], *split.parts["val"]]) == sorted(training)
    n_val = Counter(label for _, label in split.parts["val"])
    # CoOp, datasets/oxford_pets.py
    assert [n_val[label] for label in range(len(sizes))] == [round(n * 0.2) for n in sizes]


def test_images_are_drawn_and_not_taken_from_the_front() -> None:
    split = in_three(["a"], {0: paths(0, 40)})
    assert sorted(split.parts["train"]) != sorted((path, 0) for path in paths(0, 40)[:20])
