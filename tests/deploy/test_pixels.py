"""Which images of many are taken."""

from __future__ import annotations

import pytest

from kdedge.data.images import spread


@pytest.mark.parametrize(
    ("n_items", "n_wanted", "expected"),
    [(10, 4, [0, 2, 5, 7]), (6, 3, [0, 2, 4]), (3, 3, [0, 1, 2]), (2, 9, [0, 1]), (0, 5, [])],
)
def test_positions_are_spread_over_all_items(
    n_items: int, n_wanted: int, expected: list[int]
) -> None:
    assert spread(n_items, n_wanted) == expected
