"""The latency and accuracy that the file to deploy must reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdedge.errors import RecipeError

if TYPE_CHECKING:  # the command's help needs no plots
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
