"""A run and its results, as a record and as text."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kdedge.cli._output import percent, table
from kdedge.errors import DataError
from kdedge.results import EvalResult
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import labeled_results, read_evaluation


def accuracy_table(rows: Sequence[tuple[str, EvalResult]]) -> str:
    """Writes accuracies in percent, one model a line; all results have the same split."""
    header, keys = ["model", "accuracy", "ECE"], ["all", "ece_percent"]
    if rows and rows[0][1].split == "base-to-novel":
        header = ["model", "base", "novel", "HM", "all", "ECE"]
        keys = ["base", "novel", "harmonic_mean", *keys]
    cells = [[label, *(percent(getattr(found, key)) for key in keys)] for label, found in rows]
    text = table(cells, header=header, align="l" + "r" * (len(header) - 1))
    remarks = [f"\n{label}: {remark}" for label, result in rows for remark in result.remarks]
    return text + "".join(remarks)


def evaluation_rows(run: RunFolder) -> list[tuple[str, EvalResult]]:
    """Gives a run's results with labels, zero-shot CLIP first; none if the record is damaged."""
    try:
        return labeled_results(run, read_evaluation(run))
    except DataError as error:
        logging.getLogger(__name__).warning(
            "%s\n  Its accuracies are left out; `kdedge eval %s` measures them again.",
            error,
            run.path,
        )
        return []


def run_record(run: RunFolder) -> dict[str, Any]:
    """Gives a run as plain values."""
    evaluation = None
    with contextlib.suppress(DataError):  # `evaluation_rows` has warned of it
        if run.evaluation.exists():
            evaluation = {name: found.to_dict() for name, found in read_evaluation(run).items()}
    return {"path": str(run.path), **run.read_provenance().to_dict(), "evaluation": evaluation}


def finished_runs(root: Path) -> set[Path]:
    """Gives the folders of all finished runs."""
    return {run.path.resolve() for run, record in runs_in(root) if record.is_finished}


def run_text(runs: Sequence[RunFolder], *, used: Collection[Path]) -> str:
    """Writes one table of the runs' accuracies, and the files that they wrote.

    Args:
        runs: finished runs.
        used: folders of the runs that were finished before this command.
    """
    rows = sorted(
        (row for run in runs for row in evaluation_rows(run)),
        key=lambda row: not row[0].startswith("zero-shot"),
    )
    lines = [accuracy_table(rows)] if rows else ["No test images: accuracy was not measured."]
    for run in runs:
        verb = "Used" if run.path.resolve() in used else "Wrote"
        lines.append(f"{verb} {run.path} ({run.weights.name}, {run.class_vectors.name})")
    return "\n".join(lines)
