"""Chooses the file to deploy for a wanted latency or accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdedge.errors import RecipeError
from kdedge.fronts.rows import FrontRow


@dataclass(frozen=True)
class Limits:
    """What the file to deploy must reach; None for no limit.

    Attributes:
        max_ms: largest median latency at batch 1, ms.
        min_accuracy: lowest accuracy, percent.

    Raises:
        RecipeError: a number is out of range.
    """

    max_ms: float | None = None
    min_accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.max_ms is not None and not self.max_ms > 0:
            raise RecipeError(f"max_ms is {self.max_ms:g}; expected more than 0 ms.")
        if self.min_accuracy is not None and not 0 <= self.min_accuracy <= 100:
            raise RecipeError(f"min_accuracy is {self.min_accuracy:g}; expected 0 to 100 percent.")

    @property
    def text(self) -> str:
        """The limits in words; empty if there are none."""
        parts = []
        if self.max_ms is not None:
            parts.append(f"within {self.max_ms:g} ms")
        if self.min_accuracy is not None:
            parts.append(f"with at least {self.min_accuracy:g} %")
        return " ".join(parts)

    def shortfall(self, row: FrontRow) -> float:
        """The larger of time / max_ms and min_accuracy / accuracy: at most 1 within the limits."""
        assert row.p50_ms is not None
        assert row.accuracy is not None
        of_time = 0.0 if self.max_ms is None else row.p50_ms / self.max_ms
        wanted = self.min_accuracy or 0.0
        of_accuracy = wanted / row.accuracy if row.accuracy else float("inf") if wanted else 0.0
        return max(of_time, of_accuracy)


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
