"""Small tables of results as text, Markdown and HTML, and the format of numbers in their cells."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Table:
    """A table, and its writers: text, Markdown and HTML.

    Attributes:
        title: the subject, with units; may be empty.
        header: column titles; empty for a list of terms and texts.
        rows: cells, as texts; all rows have the same number.
        caption: how the values were measured.
        align: `l` or `r` for each column; the last one is for all further columns, too.
    """

    kind: ClassVar[str] = "table"  # a report's template chooses by it
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    align: str = "lr"

    @property
    def lines(self) -> list[Sequence[str]]:
        """The header, if there is one, and the rows."""
        return [self.header, *self.rows] if self.header else [*self.rows]

    @property
    def sides(self) -> str:
        """`l` or `r` for each column."""
        n_columns = max(map(len, self.lines), default=0)
        return self.align.ljust(n_columns, self.align[-1])[:n_columns]

    def __str__(self) -> str:
        """The cells in columns, two spaces apart, without title and caption."""
        widths = [max(map(len, column)) for column in zip(*self.lines, strict=True)]
        texts = []
        for line in self.lines:
            cells = [
                cell.rjust(width) if side == "r" else cell.ljust(width)
                for cell, width, side in zip(line, widths, self.sides, strict=True)
            ]
            texts.append("  ".join(cells).rstrip())
        return "\n".join(texts)

    def as_markdown(self) -> str:
        """The table in Markdown, without title and caption."""
        lines = [[_escaped(cell) for cell in line] for line in self.lines]
        marks = ["---:" if side == "r" else "---" for side in self.sides]
        lines.insert(1, marks)  # below the header
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def as_html(self) -> str:
        """The table in HTML, without title and caption; columns on the right have the class `n`."""
        marks = [' class="n"' if side == "r" else "" for side in self.sides]
        rows = ""
        for line in self.lines:
            tag = "th" if line is self.header else "td"
            cells = zip(marks, line, strict=True)
            row = "".join(f"<{tag}{mark}>{html.escape(cell)}</{tag}>" for mark, cell in cells)
            rows += f"<tr>{row}</tr>"
        return f"<table>{rows}</table>"


def _escaped(cell: str) -> str:
    """A cell's text for Markdown, in which a bar would end the cell."""
    return re.sub(r"([\\|])", r"\\\1", cell)


class Tabled:
    """Base class of results that print as a table, and show as one in a notebook."""

    @property
    def table(self) -> Table:
        """What it prints."""
        raise NotImplementedError

    @property
    def tables(self) -> Sequence[Table]:
        """All that it prints, if that is more than one table."""
        return (self.table,)

    @property
    def notes(self) -> Sequence[str]:
        """Lines below the printed table."""
        return ()

    def __str__(self) -> str:
        return "\n".join(["\n\n".join(map(str, self.tables)), *self.notes])

    def _repr_html_(self) -> str:
        tables = "<br>".join(table.as_html() for table in self.tables)
        return tables + "".join(f"<br>{html.escape(note)}" for note in self.notes)


def decimals(value: float | None) -> str:
    """Formats a percentage or a ratio with two decimals; a dash for None."""
    return "-" if value is None else f"{value:.2f}"


def images_text(number: int) -> str:
    """Formats a number of images, such as `1 image`."""
    noun = "image" if number == 1 else "images"
    return f"{number:,} {noun}"


def digits(value: float | None, unit: float = 1) -> str:
    """Formats a number in a unit with three significant digits; a dash for None."""
    if value is None:
        return "-"
    value /= unit
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
