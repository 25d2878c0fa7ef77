"""Chooses the file to deploy for a wanted latency or accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.fronts.limits import Limits
from kdedge.fronts.rows import FrontRow


def choose(ranked: Sequence[FrontRow], limits: Limits) -> FrontRow | None:
    """The file to deploy; None if no file is within the limits, or there are no limits.

    Of the files within the limits, it is the most accurate if a latency is given, else the fastest.
    """
    within = [row for row in ranked if limits.text and limits.shortfall(row) <= 1]
    if limits.max_ms is not None:
        return max(
            within, key=lambda row: (row.accuracy or 0.0, -(row.p50_ms or 0.0)), default=None
        )
    return min(within, key=lambda row: (row.p50_ms or 0.0, -(row.accuracy or 0.0)), default=None)


def answer(ranked: Sequence[FrontRow], limits: Limits) -> str:
    """Says in one line what to deploy; without limits, names the files on the front."""
    if not ranked:
        return "No file is ranked, so none is named for deployment."
    if not limits.text:
        front = [f"{row.label} ({row.figures})" for row in ranked if row.is_on_front]
        return f"On the front, the fastest first: {'; '.join(front)}."
    chosen = choose(ranked, limits)
    if chosen is None:
        nearest = min(ranked, key=limits.shortfall)
        return f"There is no file {limits.text}. The nearest is {nearest.label}: {nearest.figures}."
    best = "most accurate" if limits.max_ms is not None else "fastest"
    return (
        f"Deploy {chosen.label}: {chosen.figures}, the {best} {limits.text}:"
        f" {chosen.artifact}/{chosen.file}"
    )
