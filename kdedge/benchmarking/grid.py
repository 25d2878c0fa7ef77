"""A table of texts, before its layout."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """One table.

    Attributes:
        title: the subject, with units.
        header: column titles; the first column names the model.
        rows: cells.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
