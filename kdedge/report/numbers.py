"""How numbers stand in a report."""

from __future__ import annotations


def percent(value: float | None) -> str:
    """A percentage with two digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def points(value: float | None) -> str:
    """A difference of percentages with its sign, or a dash where there is none."""
    return "-" if value is None else f"{value:+.2f}"


def figure(value: float | None) -> str:
    """A number with three digits, or a dash where there is none."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def scaled(value: float | None, unit: float) -> str:
    """A number in a larger unit, or a dash where there is none."""
    return figure(None if value is None else value / unit)
