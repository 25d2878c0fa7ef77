"""Writes and reads the evaluations of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from kdedge.files import write_atomic, write_json
from kdedge.records.evaluation import (
    EvalDetails,
    EvalResult,
    LogitAdjustment,
    UnlabeledResult,
    are_same_images,
    on_same_images,
)
from kdedge.records.record import if_readable, read_record
from kdedge.runs.folder import RunFolder


class Evaluation(NamedTuple):
    """A model's accuracies on labeled images, and the details behind them."""

    result: EvalResult
    details: EvalDetails


Evaluations = Mapping[str, Evaluation]
"""Results by model: the run's own under its role, and others' on the same images."""

_REMEDY = "`kdedge eval RUN` writes a new one."

_T = TypeVar("_T")


def write_evaluations(run: RunFolder, evaluations: Evaluations) -> None:
    """Writes eval.json and eval_details.json.

    Raises:
        ResourceError: they cannot be written.
    """
    results = {name: measured.result for name, measured in evaluations.items()}
    _write(run, results, {name: measured.details for name, measured in evaluations.items()})


def _write(
    run: RunFolder, results: Mapping[str, EvalResult], details: Mapping[str, EvalDetails]
) -> list[Path]:
    # On one line: a confusion of 1000 classes has many thousand numbers
    values = {name: record.to_dict() for name, record in details.items()}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    write_atomic(run.evaluation_details, f"{text}\n".encode())
    write_json(run.evaluation, {name: record.to_dict() for name, record in results.items()})
    return [run.evaluation_details, run.evaluation]


def is_evaluated(run: RunFolder) -> bool:
    """Whether a run has the result and the details of its own model."""
    return run.role in readable_evaluation(run) and run.role in readable_details(run)


def add_evaluation(run: RunFolder, measured: Evaluation) -> list[Path]:
    """Writes the evaluation of a run's own model if it is missing; returns the files written.

    Nothing is added to a record of another class list or test set.

    Raises:
        ResourceError: a file cannot be written.
    """
    stored = readable_evaluation(run)
    known = readable_details(run)
    before = stored.get(run.role)
    if before is not None and (run.role in known or not are_same_images(measured.result, before)):
        return []
    return _write(run, {run.role: measured.result, **stored}, {**known, run.role: measured.details})


def add_unlabeled(run: RunFolder, result: UnlabeledResult) -> list[Path]:
    """Writes a run's evaluation without labels if it is missing; returns the files written.

    Raises:
        ResourceError: a file cannot be written.
    """
    if if_readable(read_unlabeled, run) is not None:
        return []
    write_json(run.unlabeled_evaluation, result.to_dict())
    return [run.unlabeled_evaluation]


def read_evaluation(run: RunFolder) -> dict[str, EvalResult]:
    """Reads eval.json; empty if the file is missing.

    Raises:
        DataError: it is damaged.
    """
    return _read(dict[str, EvalResult], run.evaluation) or {}


def readable_evaluation(run: RunFolder) -> dict[str, EvalResult]:
    """Reads eval.json; empty if the file is missing or damaged."""
    return if_readable(read_evaluation, run) or {}


def read_details(run: RunFolder) -> dict[str, EvalDetails]:
    """Reads eval_details.json; empty if the file is missing.

    Raises:
        DataError: it is damaged.
    """
    return _read(dict[str, EvalDetails], run.evaluation_details) or {}


def readable_details(run: RunFolder) -> dict[str, EvalDetails]:
    """Reads eval_details.json; empty if the file is missing or damaged."""
    return if_readable(read_details, run) or {}


def read_unlabeled(run: RunFolder) -> UnlabeledResult | None:
    """Reads eval_unlabeled.json; None if there is none.

    Raises:
        DataError: it is damaged.
    """
    return _read(UnlabeledResult, run.unlabeled_evaluation)


def read_logit_adjustment(run: RunFolder) -> LogitAdjustment | None:
    """Reads balance.json; None if there is none.

    Raises:
        DataError: it is damaged.
    """
    return (
        read_record(LogitAdjustment, run.logit_adjustment)
        if run.logit_adjustment.exists()
        else None
    )


def with_stored(run: RunFolder, result: EvalResult) -> dict[str, EvalResult]:
    """Returns a run's result, with other models' on the same images from its record."""
    return {**on_same_images(readable_evaluation(run), result), run.role: result}


def labeled_results(
    run: RunFolder, results: Mapping[str, EvalResult]
) -> list[tuple[str, EvalResult]]:
    """Results with their labels in tables: baselines, a teacher, the run's own."""
    in_order = sorted_results(run, results)
    return [(model_label(run, name), result) for name, result in in_order.items()]


def sorted_results(run: RunFolder, results: Mapping[str, EvalResult]) -> dict[str, EvalResult]:
    """Results in the order of tables: baselines, a teacher, the run's own."""
    last = ("labels_alone", "teacher", run.role)
    order = sorted(results, key=lambda name: last.index(name) if name in last else -1)
    return {name: results[name] for name in order}


def model_label(run: RunFolder, name: str) -> str:
    """The label of an evaluated model of a run in tables."""
    if name == "teacher" and run.role == "student":
        return "teacher, official" if run.read_provenance().official else "teacher"
    if name == "labels_alone":
        return "same network, labels alone (ridge)"
    if name in ("zeroshot", "zeroshot_balanced"):
        # A baseline has the student's backbone
        owner = "student" if run.role == "baseline" else run.role
        details = f"{owner}'s, balanced" if name == "zeroshot_balanced" else f"{owner}'s"
        return f"zero-shot CLIP ({details})"
    if name != run.role:
        return name
    record = run.read_provenance()
    label = f"{record.method} (baseline)" if run.role == "baseline" else str(run.role)
    return f"{label}, official" if record.official else label


def _read(record_type: type[_T], path: Path) -> _T | None:
    return read_record(record_type, path, remedy=_REMEDY) if path.exists() else None
