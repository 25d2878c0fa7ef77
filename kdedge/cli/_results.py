"""What a run gave, as a record and as text."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kdedge._files import read_json
from kdedge.cli._tables import accuracy_table
from kdedge.errors import DataError
from kdedge.results import EvalResult
from kdedge.training.runs import RunFolder, runs_in


def evaluation_rows(run: RunFolder) -> list[tuple[str, EvalResult]]:
    """A run's results with their labels, zero-shot CLIP on its backbone first."""
    results = _evaluation(run)
    order = sorted(results, key=lambda name: name != "zeroshot")
    labels = {"zeroshot": f"zero-shot CLIP ({run.kind}'s)", run.kind: run_label(run)}
    if run.kind == "baseline":
        labels["zeroshot"] = "zero-shot CLIP (student's)"  # a baseline has the student's backbone
    return [(labels.get(name, name), results[name]) for name in order]


def run_label(run: RunFolder) -> str:
    """What a run's model is called in a table: its kind, and which method a baseline is."""
    if run.kind != "baseline":
        return run.kind
    return f"{run.read_provenance().get('method')} (baseline)"


def _evaluation(run: RunFolder) -> dict[str, EvalResult]:
    """What the run's evaluation gave; a damaged record is no reason to keep the rest back."""
    if not run.evaluation.exists():
        return {}
    try:
        return _read_evaluation(run.evaluation)
    except DataError as error:
        logging.getLogger(__name__).warning(
            "%s\n  Its accuracies are left out; `kdedge eval %s` measures them again.",
            error,
            run.path,
        )
        return {}


def _read_evaluation(path: Path) -> dict[str, EvalResult]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} is not the record of an evaluation.")
    return {name: EvalResult.from_dict(value) for name, value in values.items()}


def run_record(run: RunFolder) -> dict[str, Any]:
    """A run as plain values."""
    evaluation = None
    with contextlib.suppress(DataError):  # `evaluation_rows` has warned of it
        evaluation = {name: r.to_dict() for name, r in _read_evaluation(run.evaluation).items()}
    return {"path": str(run.path), **run.read_provenance(), "evaluation": evaluation}


def finished_runs(root: Path) -> set[Path]:
    """Folders of the runs that are finished before a command makes its own."""
    return {
        run.path.resolve() for run, record in runs_in(root) if record.get("status") == "finished"
    }


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
