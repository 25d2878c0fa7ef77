"""What a run's evaluation gave: written into its folder, read from it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from kdedge.errors import DataError
from kdedge.eval_details import EvalDetails
from kdedge.files import write_atomic, write_json
from kdedge.records import read_record
from kdedge.results import EvalResult, PoolLabelsResult, UnlabeledResult, are_same_images
from kdedge.runs.folder import RunFolder

Evaluations = Mapping[str, tuple[EvalResult, EvalDetails]]
"""By model: the run's own under its kind, and `zeroshot` CLIP on the same backbone."""

_REMEDY = "`kdedge eval RUN` writes a new one."

_T = TypeVar("_T")


def write_evaluations(run: RunFolder, evaluations: Evaluations) -> None:
    """Writes eval.json and eval_details.json.

    Raises:
        ResourceError: they cannot be written.
    """
    _write_details(run, {name: details for name, (_, details) in evaluations.items()})
    write_json(
        run.evaluation, {name: result.to_dict() for name, (result, _) in evaluations.items()}
    )


def add_evaluation(run: RunFolder, result: EvalResult, details: EvalDetails) -> list[Path]:
    """Writes what a run lacks of its own model's evaluation, and gives the files written.

    What is there stays. Nothing is added to the record of another class list or test set.

    Raises:
        ResourceError: a file cannot be written.
    """
    stored, known = _if_whole(read_evaluation, run), _if_whole(read_details, run)
    before = stored.get(run.kind)
    if before is not None and _is_other(result, before):
        return []
    written = []
    own = known.get(run.kind, details)
    own = replace(own, samples=own.samples or details.samples)
    if own != known.get(run.kind):
        _write_details(run, {**known, run.kind: own})
        written.append(run.evaluation_details)
    if before is None:
        results = {run.kind: result, **stored}
        write_json(run.evaluation, {name: found.to_dict() for name, found in results.items()})
        written.append(run.evaluation)
    return written


def has_samples(run: RunFolder) -> bool:
    """Whether the record of a run's own model has sample images."""
    own = _if_whole(read_details, run).get(run.kind)
    return own is not None and own.samples is not None


def add_unlabeled(run: RunFolder, result: UnlabeledResult) -> list[Path]:
    """Writes what a run lacks of its evaluation without labels, and gives the files written.

    Raises:
        ResourceError: a file cannot be written.
    """
    try:
        is_there = read_unlabeled(run) is not None
    except DataError:  # damaged: it is written anew
        is_there = False
    if is_there:
        return []
    write_json(run.unlabeled_evaluation, result.to_dict())
    return [run.unlabeled_evaluation]


def read_evaluation(run: RunFolder) -> dict[str, EvalResult]:
    """Reads eval.json; empty where there is none.

    Raises:
        DataError: it is damaged.
    """
    return _read(dict[str, EvalResult], run.evaluation)


def read_details(run: RunFolder) -> dict[str, EvalDetails]:
    """Reads eval_details.json; empty where there is none.

    Raises:
        DataError: it is damaged.
    """
    return _read(dict[str, EvalDetails], run.evaluation_details)


def read_unlabeled(run: RunFolder) -> UnlabeledResult | None:
    """Reads eval_unlabeled.json; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    path = run.unlabeled_evaluation
    if not path.exists():
        return None
    return read_record(UnlabeledResult, path, remedy=_REMEDY)


def read_targets(run: RunFolder) -> PoolLabelsResult | None:
    """Reads targets.json; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    path = run.targets
    if not path.exists():
        return None
    return read_record(PoolLabelsResult, path, remedy="Remove it: reports leave it out.")


def labeled_results(
    run: RunFolder, results: Mapping[str, EvalResult]
) -> list[tuple[str, EvalResult]]:
    """Results with the names that tables give them: zero-shot CLIP, a teacher, the run's own."""
    order = sorted(results, key=lambda name: (name != "zeroshot", name == run.kind))
    return [(model_label(run, name), results[name]) for name in order]


def model_label(run: RunFolder, name: str) -> str:
    """What a model of a run's evaluation is called in a table."""
    if name == "teacher" and run.kind == "student":
        return "teacher, official" if run.read_provenance().official else "teacher"
    if name == "zeroshot":
        # A baseline has the student's backbone
        owner = "student" if run.kind == "baseline" else run.kind
        return f"zero-shot CLIP ({owner}'s)"
    return run_label(run) if name == run.kind else name


def run_label(run: RunFolder) -> str:
    """What a run's model is called in a table: its kind, a baseline's method, whether official."""
    record = run.read_provenance()
    label = f"{record.method} (baseline)" if run.kind == "baseline" else str(run.kind)
    return f"{label}, official" if record.official else label


def _read(kind: type[dict[str, _T]], path: Path) -> dict[str, _T]:
    return read_record(kind, path, remedy=_REMEDY) if path.exists() else {}


def _write_details(run: RunFolder, details: Mapping[str, EvalDetails]) -> None:
    """In one line: a confusion of 1000 classes has many thousand numbers."""
    values = {name: found.to_dict() for name, found in details.items()}
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    write_atomic(run.evaluation_details, f"{text}\n".encode())


def _if_whole(read: Callable[[RunFolder], dict[str, _T]], run: RunFolder) -> dict[str, _T]:
    """A record, or nothing where it is damaged, so that it is written anew."""
    try:
        return read(run)
    except DataError:
        return {}


def _is_other(result: EvalResult, before: EvalResult) -> bool:
    """Whether a result is of other images, another class list or another split."""
    lists = [(found.split, tuple(found.per_class)) for found in (result, before)]
    return lists[0] != lists[1] or not are_same_images(result, before)
