"""The accuracy table that several commands end with."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.cli._output import percent, table
from kdedge.results import CHOSEN_ON_TEST, EvalResult


def accuracy_table(rows: Sequence[tuple[str, EvalResult]]) -> str:
    """Accuracies in percent, one model a line.

    Args:
        rows: label and result; all of one split.
    """
    if rows and rows[0][1].split == "base-to-novel":
        header = ["model", "base", "novel", "HM", "all", "ECE"]
        cells = [
            [label, *map(percent, (r.base, r.novel, r.harmonic_mean, r.all, r.ece_percent))]
            for label, r in rows
        ]
    else:
        header = ["model", "accuracy", "ECE"]
        cells = [[label, percent(r.all), percent(r.ece_percent)] for label, r in rows]
    text = table(cells, header=header, align="l" + "r" * (len(header) - 1))
    chosen = [label for label, result in rows if result.selection == "test"]
    return text + "".join(f"\n{label}: {CHOSEN_ON_TEST}" for label in chosen)
