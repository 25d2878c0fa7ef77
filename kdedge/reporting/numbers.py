"""Formats numbers with fixed digits; None is a dash."""

from __future__ import annotations


def percent(value: float | None) -> str:
    """A percentage with two digits."""
    return "-" if value is None else f"{value:.2f}"


def points(value: float | None) -> str:
    """A difference of percentages, with its sign."""
    return "-" if value is None else f"{value:+.2f}"


def figure(value: float | None, unit: float = 1) -> str:
    """A number in a unit, with three significant digits."""
    if value is None:
        return "-"
    value /= unit
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
