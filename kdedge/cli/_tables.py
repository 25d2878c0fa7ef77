"""The accuracy table that several commands end with."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.cli._output import percent, table
from kdedge.results import EvalResult


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
    remarks = [f"\n{label}: {remark}" for label, result in rows for remark in result.remarks]
    return text + "".join(remarks)
