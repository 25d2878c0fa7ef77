"""Accuracies of a table of benchmarks/README.md as a picture: one line a row, one dot a column.

python benchmarks/table_plot.py HEADING PICTURE.svg

HEADING is the section whose first table is drawn: base, novel and harmonic mean, with standard
deviations where the table has them. The picture can be read on light and on dark pages.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TABLES = Path(__file__).with_name("README.md")
COLORS = {"base": "#3b82f6", "novel": "#f59e0b", "harmonic mean": "#10b981"}
TEXT = "#7d8590"
WIDTH, LEFT, RIGHT, TOP, LINE = 720, 250, 30, 36, 26


class Value(NamedTuple):
    """A mean and its standard deviation, percent; 0 where the table has none."""

    mean: float
    deviation: float


def read_table(text: str, heading: str) -> dict[str, dict[str, Value]]:
    """Row -> column -> value of the first table below a heading."""
    (section,) = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    (first, *_) = re.findall(r"(?:^\|.*\n)+", section, re.M)
    header, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in first.splitlines()
    )
    rows = (dict(zip(header, cells, strict=True)) for cells in lines)
    return {row[header[0]]: {name: _value(row[name]) for name in COLORS} for row in rows}


def _value(cell: str) -> Value:
    mean, _, deviation = cell.replace("**", "").partition(" ± ")
    return Value(float(mean), float(deviation or 0))


def draw(rows: dict[str, dict[str, Value]]) -> str:
    """The picture as SVG."""
    values = [value for row in rows.values() for value in row.values()]
    low = int(min(value.mean - value.deviation for value in values)) // 5 * 5
    high = -(-int(max(value.mean + value.deviation for value in values) + 1) // 5) * 5
    height = TOP + LINE * len(rows) + 30

    def x(percent: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (percent - low) / (high - low)

    def lines() -> Iterator[str]:
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img"'
            f' aria-label="Accuracy of {len(rows)} models" font-family="system-ui, sans-serif"'
            f' font-size="13" fill="{TEXT}">'
        )
        for number, (name, color) in enumerate(COLORS.items()):
            yield f'<circle cx="{LEFT + 110 * number}" cy="14" r="5" fill="{color}"/>'
            yield f'<text x="{LEFT + 110 * number + 11}" y="18">{name}</text>'
        for tick in range(low, high + 1, 5):
            yield (
                f'<path d="M{x(tick):.1f} {TOP - 8}V{height - 24}" stroke="{TEXT}" opacity="0.4"/>'
                f'<text x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{tick} %</text>'
            )
        for number, (label, row) in enumerate(rows.items()):
            y = TOP + LINE * number + LINE // 2
            short = re.sub(r"\s*\(.*\)", "", label)
            yield f'<text x="{LEFT - 12}" y="{y + 4}" text-anchor="end">{short}</text>'
            for name, value in row.items():
                ends = [x(value.mean + sign * value.deviation) for sign in (-1, 1)]
                yield (
                    f'<path d="M{ends[0]:.1f} {y}H{ends[1]:.1f}" stroke="{COLORS[name]}"'
                    ' stroke-width="2"/>'
                    f'<circle cx="{x(value.mean):.1f}" cy="{y}" r="5" fill="{COLORS[name]}"/>'
                )
        yield "</svg>"

    return "\n".join(lines()) + "\n"


def main() -> None:
    """Draws the table that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heading")
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    rows = read_table(TABLES.read_text(encoding="utf-8"), arguments.heading)
    arguments.picture.write_text(draw(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
