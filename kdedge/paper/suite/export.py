"""Exports the students of a suite, times all files against each other, and finds the fastest."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdedge.benchmarking.artifact_subjects import artifact_subjects
from kdedge.benchmarking.run import run_bench
from kdedge.benchmarking.tables import machine_text
from kdedge.benchmarking.timing import TimingPlan
from kdedge.config.load import recipe_values
from kdedge.errors import GateError, KdedgeError, RecipeError
from kdedge.files import write_atomic, write_json, write_new_numbered_json
from kdedge.messages import first_line
from kdedge.paper.suite.plan import Cell
from kdedge.paper.suite.state import SuiteState
from kdedge.records.evaluation import EvalResult
from kdedge.records.speed import SpeedRow, pareto_front
from kdedge.records.tables import Table, decimals, digits
from kdedge.runs.folder import RunFolder
from kdedge.runtime.artifact import Artifact, load_artifact

log = logging.getLogger(__name__)

# The content of `exported.json`, and its table with a legend as caption
Exported = tuple[dict[str, Any], Table]

HEADER = ["student", "file", "on the front", "%", "HM", "ms", "MB", "GFLOPs"]


def export_students(state: SuiteState, export: Callable[..., Artifact]) -> Exported:
    """Exports the first finished seed of each row, and times all files against each other.

    A run's newest artifact is used if it has one. `exported.json` and `exported.md` are written
    into the suite's folder.

    Args:
        state: state of a suite whose cells have run.
        export: exports a run with `overrides` of its recipe.

    Raises:
        KdedgeError: no row could be exported and measured; the error of the first row.
    """
    artifacts, left_out = _artifacts(state, export)
    subjects = [
        dataclasses.replace(subject, source=label)
        for label, (_, artifact) in artifacts.items()
        for subject in artifact_subjects(artifact, n_threads=None)
    ]
    speed = run_bench(subjects, plan=TimingPlan(), batches=(1,), n_threads=None, left_out=left_out)
    files = []
    for timed in speed.rows:
        cell, artifact = artifacts[timed.source]
        files.append(_file(timed, artifact.path / timed.model, state.outcomes[cell].result))
    for images in {file["images"] for file in files}:  # a Pareto front needs the same images
        ranked = [file for file in files if file["images"] == images and file["doubt"] is None]
        for i in pareto_front([(entry["p50_ms"], entry["accuracy"]) for entry in ranked]):
            ranked[i]["is_on_front"] = True
    folder = state.folder
    record = {
        "suite": state.plan.loaded.suite.name,
        "measurements": str(write_new_numbered_json(folder / "bench", speed.to_dict())),
        "machine": f"{machine_text(speed)}, {speed.measured_at}",
        "files": sorted(files, key=lambda entry: (entry["p50_ms"] is None, entry["p50_ms"])),
        "left_out": dict(speed.left_out),
    }
    table = _table(record)
    write_json(folder / "exported.json", record)
    notes = "\n".join(f"* {note}" for note in table.caption.split("\n"))
    write_atomic(folder / "exported.md", f"{table.as_markdown()}\n\n{notes}\n".encode())
    return record, table


def _artifacts(
    state: SuiteState, export: Callable[..., Artifact]
) -> tuple[dict[str, tuple[Cell, Artifact]], dict[str, str]]:
    """The artifact of each row's first finished seed, and why other rows have none; by label."""
    artifacts: dict[str, tuple[Cell, Artifact]] = {}
    left_out: dict[str, str] = {}
    errors: list[KdedgeError] = []
    plan = state.plan
    for recipe, row in itertools.product(plan.recipes, plan.loaded.suite.methods):
        label = row.name if len(plan.recipes) == 1 else f"{recipe}, {row.name}"
        all_cells = plan.of(recipe, row.name)
        # A model of other classes has a file of those: it stays out
        cells = [cell for cell in all_cells if not (cell.is_zero_shot or cell.source)]
        cell = next(filter(state.is_finished, cells), None)
        if cell is None:
            left_out |= {label: "it has no finished run"} if cells else {}
            continue
        try:
            artifacts[label] = cell, _artifact(state, cell, export)
        except KdedgeError as error:
            log.warning(f"{label} cannot be exported: {error}")
            left_out[label] = first_line(error)
            errors.append(error)
    if not artifacts:
        raise errors[0] if errors else RecipeError(f"{plan.loaded.path} has no run to export.")
    return artifacts, left_out


def _table(record: dict[str, Any]) -> Table:
    """The figures of each file, with notes on files that are not ranked."""
    notes = [
        "%: the file's accuracy over all names, on the images of its comparison. HM: the student's"
        f" harmonic mean. ms: median at batch 1, in turns. {record['machine']}."
    ]
    rows = []
    for file in record["files"]:
        name = Path(file["file"]).name
        doubt = file["doubt"]
        rows.append([
            file["student"], name, "yes" if file["is_on_front"] else "",
            decimals(file["accuracy"]), decimals(file["harmonic_mean"]),
            f"{digits(file['p50_ms'])}{'!' if doubt else ''}",
            digits(file["n_bytes"], 1e6), digits(file["gflops"]),
        ])  # fmt: skip
        notes += [f"! {file['student']}, {name}: {doubt}"] if doubt else []
    notes += [f"{row} is left out: {why}" for row, why in record["left_out"].items()]
    return Table("", HEADER, rows, "\n".join(notes), align="lllr")


def _artifact(state: SuiteState, cell: Cell, export: Callable[..., Artifact]) -> Artifact:
    """The newest artifact of a cell's run; if it has none, exports the run by the cell's recipe."""
    folder = RunFolder.open(Path(str(state.outcomes[cell].run)))
    if folder.newest_artifact is None:
        values = recipe_values(cell.loaded.recipe)
        keys = {key: values[key] for key in ("export", "gates")}
        with contextlib.suppress(GateError):  # the file is marked, and not ranked
            return export(folder.path, overrides=keys)
    assert folder.newest_artifact is not None
    return load_artifact(folder.newest_artifact)


def _file(row: SpeedRow, path: Path, result: EvalResult | None) -> dict[str, Any]:
    """The figures of a measured file.

    `images` is the hash of the labeled images of its comparison, `accuracy` the file's accuracy
    over all class names and `harmonic_mean` the student's before the export, in percent. `gflops`
    counts 2 per multiply-add. `is_on_front` is whether the file is on the Pareto front of files
    with the same images, and `doubt` why it is not ranked.
    """
    time = row.without_file(1)
    accuracy = row.accuracy
    doubt = row.problem or ("it was not measured at batch 1" if time is None else time.doubt)
    if row.gate == "missed":
        doubt = doubt or "it missed its gates"
    elif accuracy is None or accuracy.all is None:
        doubt = doubt or "its accuracy is unknown"
    return {
        "student": row.source,
        "file": str(path),
        "precision": row.precision,
        "gate": row.gate,
        "images": None if accuracy is None else accuracy.images_hash,
        "accuracy": None if accuracy is None else accuracy.all,
        "harmonic_mean": None if result is None else result.harmonic_mean,
        "p50_ms": None if time is None else time.p50_ms,
        "n_bytes": row.n_bytes,
        "gflops": row.gflops,
        "is_on_front": False,
        "doubt": doubt,
    }
