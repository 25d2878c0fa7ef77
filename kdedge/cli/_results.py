"""What a run gave, as a record and as text."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kdedge.cli._tables import accuracy_table
from kdedge.errors import DataError
from kdedge.results import EvalResult
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import labeled_results, read_evaluation


def evaluation_rows(run: RunFolder) -> list[tuple[str, EvalResult]]:
    """A run's results with their labels, zero-shot CLIP on its backbone first."""
    return labeled_results(run, _evaluation(run))


def _evaluation(run: RunFolder) -> dict[str, EvalResult]:
    """What the run's evaluation gave; a damaged record is no reason to keep the rest back."""
    try:
        return read_evaluation(run)
    except DataError as error:
        logging.getLogger(__name__).warning(
            "%s\n  Its accuracies are left out; `kdedge eval %s` measures them again.",
            error,
            run.path,
        )
        return {}


def run_record(run: RunFolder) -> dict[str, Any]:
    """A run as plain values."""
    evaluation = None
    with contextlib.suppress(DataError):  # `evaluation_rows` has warned of it
        if run.evaluation.exists():
            evaluation = {name: found.to_dict() for name, found in read_evaluation(run).items()}
    return {"path": str(run.path), **run.read_provenance().to_dict(), "evaluation": evaluation}


def finished_runs(root: Path) -> set[Path]:
    """Folders of the runs that are finished before a command makes its own."""
    return {run.path.resolve() for run, record in runs_in(root) if record.is_finished}


def run_text(runs: Sequence[RunFolder], *, used: Collection[Path]) -> str:
    """One table over the runs, and what they wrote.

    Args:
        runs: finished runs.
        used: folders of those that were there before.
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
