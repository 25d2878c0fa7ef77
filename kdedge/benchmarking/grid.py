"""A table of texts, before anything lays it out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        title: what it shows, with units.
        header: of its columns; the first is the model's.
        rows: cells.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
