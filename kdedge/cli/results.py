"""Formats a run and its results, as a record and as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from kdedge.cli.output import table, table_text
from kdedge.records.evaluation import (
    EvalResult,
    UnlabeledResult,
    are_same_images,
    by_images,
    results_table,
)
from kdedge.reporting.headline import conclusion_of, headline_of
from kdedge.reporting.model_records import model_records
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import labeled_results, readable_evaluation

_MAX_NAMED = 5  # most often predicted classes to name


def accuracy_text(rows: Sequence[tuple[str, EvalResult]]) -> str:
    """Formats accuracies in percent, one model per line; all results have the same split."""
    text = table_text(results_table(rows))
    for label, result in rows:
        for note in result.notes:
            text += f"\n{label}: {note}"
    return text


def accuracy_texts(rows: Sequence[tuple[str, EvalResult]]) -> str:
    """Formats one table per set of test images, with their number if there are several sets."""
    groups = by_images(rows)
    if len(groups) == 1:
        return accuracy_text(groups[0])
    blocks: list[str] = []
    for group in groups:
        _, first_result = group[0]
        which = "another set of " if blocks else ""
        head = f"On {which}{first_result.n_images:,} test images:"
        blocks.append(f"{head}\n{accuracy_text(group)}")
    return "\n\n".join(blocks)


def unlabeled_text(result: UnlabeledResult) -> str:
    """Formats measurements on unlabeled images."""
    most_predicted = sorted(result.predicted.items(), key=lambda entry: -entry[1])[:_MAX_NAMED]
    rows = [*result.table.rows]
    what = "most often"
    for name, n in most_predicted:
        rows.append([what, f"{name} {100 * n / result.n_images:.1f} %"])
        what = ""
    return table(rows)


def megabytes(n_bytes: int) -> str:
    """Formats a number of bytes in MB with one digit."""
    return f"{n_bytes / 1e6:.1f} MB"


def run_record(run: RunFolder) -> dict[str, Any]:
    """Returns a run as plain values."""
    measured = model_records(run)
    evaluation = {name: result.to_dict() for name, result in measured.results.items()} or None
    record = {"path": str(run.path), **run.read_provenance().to_dict(), "evaluation": evaluation}
    if measured.unlabeled is not None:
        record["evaluation_unlabeled"] = measured.unlabeled.to_dict()
    headline = headline_of(measured)
    return record if headline is None else {**record, "headline": headline}


def run_text(runs: Sequence[RunFolder], *, used: Collection[Path]) -> str:
    """Formats one table of the runs' accuracies, and the files that they wrote.

    Args:
        runs: finished runs; the last is the command's own run, the others are its teachers.
        used: folders of the runs that were finished before this command.
    """
    rows: list[tuple[str, EvalResult]] = []
    several = len([run for run in runs if run.role == "student"]) > 1
    trained = runs[-1]  # one of its teachers may be a student, too
    measured = model_records(trained)
    for run in runs:
        student_label = f"student {run.name}" if several else "student"
        results = measured.results if run is trained else readable_evaluation(run)
        if run is not trained and "teacher" in measured.results and run.role in results:
            taught = measured.results["teacher"]  # in the balance of its student's recipe
            if are_same_images(results[run.role], taught):
                results = {**results, run.role: taught}
        for name, result in labeled_results(run, results):
            label = student_label if name == "student" else name
            # A student's record repeats the accuracy of its teacher
            if not any(label == other and are_same_images(result, known) for other, known in rows):
                rows.append((label, result))
    rows.sort(key=lambda row: not row[0].startswith("zero-shot"))
    lines = [accuracy_texts(rows)] if rows else ["No test images: accuracy was not measured."]
    if measured.unlabeled is not None:
        lines.append(unlabeled_text(measured.unlabeled))
    for run in runs:
        is_elsewhere = run.root.resolve() != trained.root.resolve()
        verb = "Used" if is_elsewhere or run.path.resolve() in used else "Wrote"
        lines.append(f"{verb} {run.path} ({run.weights.name}, {run.class_vectors.name})")
    lines += conclusion_of(measured)
    return "\n".join(lines)
