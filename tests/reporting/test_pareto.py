"""The front against the definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kdedge.benchmarking.tables import pareto_front

POINTS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), max_size=12)


@given(points=POINTS)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[float, float]]) -> None:
    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    front = pareto_front(points)
    slow = {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}
    assert set(front) == slow
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
