"""Finds the Pareto front of accuracy and time."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Returns the positions of the points (time, accuracy) on the Pareto front, sorted by time.

    A point is dominated by one that is no slower and no less accurate, and better in one of the
    two.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
