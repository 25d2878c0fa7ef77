"""Which models nothing beats in both accuracy and time."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points that no other beats, by time.

    A point is beaten by one that is no slower and no less accurate, and better in one of the two.

    Args:
        points: time (lower is better) and accuracy (higher is better).
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1] or points[i] == points[front[-1]]:
            front.append(i)
    return front
