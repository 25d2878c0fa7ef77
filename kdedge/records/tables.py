"""Small tables of results as text, Markdown and HTML, and the format of numbers in their cells."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

Table = tuple[list[str], list[list[str]]]
"""A header, and rows with the same number of cells."""


class Tabled:
    """Base class of results that print as a table, and show as one in a notebook."""

    @property
    def table(self) -> Table:
        """Header and cells."""
        raise NotImplementedError

    @property
    def notes(self) -> Sequence[str]:
        """Lines below the printed table."""
        return ()

    def __str__(self) -> str:
        return "\n".join([text_table(*self.table), *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>{html.escape(note)}" for note in self.notes)
        return html_table(*self.table) + notes


@dataclass(frozen=True)
class Grid:
    """A table with a title.

    Attributes:
        title: the subject, with units; may be empty.
        header: column titles; empty for a list of terms and texts.
        rows: cells, as texts.
        caption: how the values were measured.
        n_text: number of left columns that hold words; the others hold numbers, on the right.
    """

    kind: ClassVar[str] = "table"  # a report's template chooses by it
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    n_text: int = 1

    @property
    def align(self) -> str:
        """`l` or `r` for each column."""
        return "l" * self.n_text + "r" * (len(self.header) - self.n_text)

    def as_markdown(self) -> str:
        """The table without title and caption."""
        return markdown_table(self.header, self.rows, align=self.align)


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str | None = None
) -> str:
    """Lays out cells in columns, two spaces apart.

    Args:
        header: column titles; may be empty.
        rows: cells; all rows have the same number.
        align: `l` or `r` for each column; `l` for columns beyond its end. Default: `l` for the
            first column, `r` for the others.
    """
    lines = [header, *rows] if header else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    n_columns = len(widths)
    sides = "l" + "r" * (n_columns - 1) if align is None else align.ljust(n_columns, "l")
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, align: str | None = None
) -> str:
    """Lays out cells as a Markdown table; see `text_table`."""
    n_columns = len(header)
    sides = "l" + "r" * (n_columns - 1) if align is None else align.ljust(n_columns, "l")
    marks = ["---:" if side == "r" else "---" for side in sides]
    cells = [[re.sub(r"([\\|])", r"\\\1", cell) for cell in line] for line in (header, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (cells[0], marks, *cells[1:]))


def html_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int | None = None
) -> str:
    """Lays out cells as an HTML table.

    Args:
        header: column titles; may be empty.
        rows: cells of each row.
        n_text: number of left columns that hold words; the others get the class `n`.
    """
    lines = [_html_row("th", header, n_text)] if header else []
    lines += [_html_row("td", row, n_text) for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _html_row(tag: str, cells: Sequence[str], n_text: int | None) -> str:
    """One table row of `html_table`."""
    marks = ["" if n_text is None or i < n_text else ' class="n"' for i in range(len(cells))]
    parts = [f"<{tag}{m}>{html.escape(c)}</{tag}>" for m, c in zip(marks, cells, strict=True)]
    return f"<tr>{''.join(parts)}</tr>"


def percent(value: float | None) -> str:
    """Formats a percentage with two decimals; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def points(value: float | None) -> str:
    """Formats a difference of percentages, with its sign; a dash for None."""
    return "-" if value is None else f"{value:+.2f}"


def images_text(number: int) -> str:
    """Formats a number of images, such as `1 image`."""
    return f"{number:,} image{'' if number == 1 else 's'}"


def figure(value: float | None, unit: float = 1) -> str:
    """Formats a number in a unit with three significant digits; a dash for None."""
    if value is None:
        return "-"
    value /= unit
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
