"""What a run gave, as a record and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdedge._files import read_json
from kdedge.cli._tables import accuracy_table
from kdedge.results import EvalResult
from kdedge.training.runs import RunFolder


def evaluation_rows(run: RunFolder) -> list[tuple[str, EvalResult]]:
    """A run's results with their labels, zero-shot CLIP on its backbone first."""
    if not run.evaluation.exists():
        return []
    results = {
        name: EvalResult.from_dict(value) for name, value in read_json(run.evaluation).items()
    }
    order = sorted(results, key=lambda name: name != "zeroshot")
    labels = {"zeroshot": f"zero-shot CLIP ({run.kind}'s)"}
    return [(labels.get(name, name), results[name]) for name in order]


def run_record(run: RunFolder) -> dict[str, Any]:
    """A run as plain values."""
    record = run.read_provenance()
    evaluation = read_json(run.evaluation) if run.evaluation.exists() else None
    return {"path": str(run.path), **record, "evaluation": evaluation}


def run_text(runs: Sequence[RunFolder]) -> str:
    """One table over the runs, and what they wrote."""
    rows = sorted(
        (row for run in runs for row in evaluation_rows(run)),
        key=lambda row: not row[0].startswith("zero-shot"),
    )
    lines = [accuracy_table(rows)] if rows else ["No test images: accuracy was not measured."]
    for run in runs:
        lines.append(f"Wrote {run.path} ({run.weights.name}, {run.class_vectors.name})")
    return "\n".join(lines)
