"""Small tables of results, as text and for notebooks."""

from __future__ import annotations

import html
from abc import abstractmethod
from collections.abc import Sequence

Table = tuple[list[str], list[list[str]]]
"""A header and rows of as many cells."""


class Tabled:
    """Prints as a table, and shows as one in a notebook."""

    @abstractmethod
    def _table(self) -> Table:
        """What is shown."""

    def _notes(self) -> Sequence[str]:
        """Lines below the printed table."""
        return ()

    def __str__(self) -> str:
        return "\n".join([text_table(*self._table()), *self._notes()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<br>{html.escape(note)}" for note in self._notes())
        return html_table(*self._table()) + notes


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out cells in columns, two spaces apart: the first on the left, others on the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes the same as an HTML table."""
    lines = [_html_row("th", header), *(_html_row("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
