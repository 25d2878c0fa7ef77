"""The state of a suite's cells, read from the runs of their jobs and from the suite's folder.

Jobs are found by their keys; nothing is trained.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field

from kdedge.config.load import dump_recipe
from kdedge.data.images import Images
from kdedge.errors import KdedgeError
from kdedge.files import explained, write_atomic, write_json
from kdedge.progress import progress
from kdedge.records.evaluation import EvalResult
from kdedge.records.record import Record, Sha256, read_record
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import read_evaluation
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.data import RecipeData
from kdedge.setup.workspace import Workspace
from kdedge.suite.plan import Cell, Plan
from kdedge.training.student import (
    file_teacher,
    named_teacher,
    open_teacher,
    student_job,
    with_teacher,
)
from kdedge.training.teach import baseline_job, teacher_job
from kdedge.training.teachers import AnyTeacher

CellStatus = Literal["not begun", "interrupted", "not measured", "finished", "failed"]


_T = TypeVar("_T", bound=Record)


@dataclass(frozen=True)
class Failure(Record):
    """How a cell's process failed.

    Attributes:
        exit_code: negative for the signal that killed the process.
        last_lines: the last lines of its log.
    """

    exit_code: Annotated[int, Field(ge=-255, le=255)]
    last_lines: tuple[str, ...]


@dataclass(frozen=True)
class CellAccuracy(Record):
    """Accuracies of a run on other test images or class names than its own evaluation has.

    Attributes:
        run: the run, as `name/NN`.
        job: key of the run's job.
        template: text pattern for the class names, which are in `result`.
        result: the accuracies.
    """

    run: str
    job: Sha256
    template: str
    result: EvalResult


_SUFFIX: dict[type[Record], str] = {Failure: ".failure.json", CellAccuracy: ".eval.json"}


@dataclass(frozen=True)
class SuiteFolder:
    """The files of a suite.

    Attributes:
        path: the folder.
    """

    path: Path

    def log(self, cell: Cell) -> Path:
        """The log of the cell's processes, one after the other."""
        return self._file(cell, ".log")

    def answer(self, cell: Cell) -> Path:
        """The file in which `kdedge eval` gives a cell's accuracies."""
        return self._file(cell, ".answer.json")

    def failure(self, cell: Cell) -> Failure | None:
        """The failure of a cell's last process; None if there is none."""
        return self._read(Failure, cell)

    def measurement(self, cell: Cell) -> CellAccuracy | None:
        """The last measurement for a cell; None if there is none."""
        return self._read(CellAccuracy, cell)

    def _read(self, kind: type[_T], cell: Cell) -> _T | None:
        file = self._file(cell, _SUFFIX[kind])
        remedy = "Remove it and run the suite again: the cell runs again, or uses its finished run."
        return read_record(kind, file, remedy=remedy) if file.exists() else None

    def write(self, cell: Cell, record: Failure | CellAccuracy) -> None:
        """Writes a record; it replaces an older one.

        Raises:
            ResourceError: the folder may not be written.
        """
        write_json(self._file(cell, _SUFFIX[type(record)]), record.to_dict())

    def begin(self, cell: Cell) -> Path:
        """Writes the recipe of a cell's process, and deletes the record of its last failure.

        The process reads the recipe as planned, even if the suite's file is edited meanwhile.

        Raises:
            ResourceError: the folder may not be written.
        """
        recipe, failure = self._file(cell, ".yaml"), self._file(cell, _SUFFIX[Failure])
        with explained(recipe.parent):
            recipe.parent.mkdir(parents=True, exist_ok=True)
            failure.unlink(missing_ok=True)
        write_atomic(recipe, dump_recipe(cell.loaded.recipe).encode())
        return recipe

    def _file(self, cell: Cell, suffix: str) -> Path:
        """A file of a cell; a hash distinguishes labels that would give the same file name."""
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", cell.row).strip("-.") or "row"
        if label != cell.row:
            label += f"-{hashlib.sha256(cell.row.encode()).hexdigest()[:8]}"
        return self.path / "cells" / cell.recipe / f"{label}-seed{cell.seed}{suffix}"


class FinishedRun(NamedTuple):
    """A finished run's folder and provenance."""

    folder: RunFolder
    record: Provenance


class Runs:
    """The runs in a folder, by the keys of their jobs.

    Args:
        root: folder of all runs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._finished: dict[Path, FinishedRun] = {}
        self._begun: set[str | None] = set()

    def refresh(self) -> bool:
        """Reads runs that are new or were unfinished; returns whether any is finished now."""
        self._begun, n_before = set(), len(self._finished)
        for run, record in runs_in(self.root, but=self._finished):
            if record.is_finished:
                self._finished[run.path] = FinishedRun(run, record)
            else:
                self._begun.add(record.key)
        return len(self._finished) > n_before

    def finished(self, key: str | None) -> list[FinishedRun]:
        """The finished runs of a job, newest first; empty for None."""
        runs = [run for run in self._finished.values() if key is not None and run.record.key == key]
        return sorted(runs, key=lambda run: str(run.record.finished_at), reverse=True)

    def has_begun(self, key: str) -> bool:
        """Whether a job has an unfinished run."""
        return key in self._begun


class EvalSet(NamedTuple):
    """What accuracy is measured on.

    Attributes:
        images_hash: of the images and the class names.
        split: of the classes.
        template: text pattern for the class names.
    """

    images_hash: str
    split: str
    template: str

    @classmethod
    def of(cls, images: Images | None, classes: Classes) -> EvalSet:
        """The readable test images of a recipe with `data.test`."""
        assert images is not None  # the plan refuses a recipe without it
        return cls(images.hash_with(classes.names), classes.split, classes.template)

    def fits(self, result: EvalResult) -> bool:
        """Whether a result is of these images and class names, with this split."""
        return (result.images_hash, result.split) == (self.images_hash, self.split)


@dataclass(frozen=True)
class CellJob:
    """The job of a cell.

    Attributes:
        test: images and class names that it is measured on.
        key: key of its job; None for a cell that trains nothing, or until its teacher is trained.
        teacher: key of the job of the teacher that is trained for it.
    """

    test: EvalSet
    key: str | None = None
    teacher: str | None = None

    @property
    def keys(self) -> set[str]:
        """The keys that are known."""
        return {key for key in (self.key, self.teacher) if key is not None}


def find_job(cell: Cell, workspace: Workspace, runs: Runs) -> CellJob:
    """Finds the job of a cell from hashes.

    Raises:
        KdedgeError: as the cell's command would raise at its start.
    """
    loaded = cell.loaded
    if cell.source is not None:
        classes = load_classes(loaded.recipe)
        images = RecipeData(loaded.recipe, classes, workspace)
        return CellJob(EvalSet.of(images.load("test"), classes))
    if cell.role == "student":
        return _students_job(cell, workspace, runs)
    make = teacher_job if cell.role == "teacher" else baseline_job
    job = make(loaded, workspace)
    return CellJob(EvalSet.of(job.test, job.classes), job.key())


def _students_job(cell: Cell, workspace: Workspace, runs: Runs) -> CellJob:
    """The key of a student's job; it depends on the trained teacher."""
    student = student_job(cell.loaded, workspace)
    run, trained = named_teacher(cell.loaded, workspace), None
    teacher: AnyTeacher | None = file_teacher(student)
    if teacher is None and run is None:
        trained = teacher_job(cell.loaded, workspace).key()
        run = next((done.folder for done in runs.finished(trained)), None)
    if run is not None:
        teacher = open_teacher(run, student)
    key = None if teacher is None else with_teacher(student, teacher).key()
    return CellJob(EvalSet.of(student.test, student.setup.classes), key, trained)


@dataclass(frozen=True)
class Outcome:
    """The state of a cell.

    Attributes:
        status: `finished` if its accuracies are known; `not measured` if its run is finished but
            was measured on other images.
        run: folder of the run that was measured.
        result: the run's accuracies.
        seconds: training time of the run; None if nothing was trained.
        failure: how its process failed; None if it did not.
    """

    status: CellStatus
    run: Path | None = None
    result: EvalResult | None = None
    seconds: float | None = None
    failure: Failure | None = None


class Ledger:
    """Known states of a suite's cells. A cell that was found finished stays finished.

    Attributes:
        plan: the suite.
        folder: the suite's folder.
    """

    def __init__(
        self, plan: Plan, folder: SuiteFolder, root: Path, *, is_read_only: bool = False
    ) -> None:
        """Starts without any states; `refresh` reads them.

        Args:
            plan: the suite.
            folder: the suite's folder.
            root: folder of all runs.
            is_read_only: write no caches.
        """
        self.plan, self.folder = plan, folder
        self._runs, self._is_read_only = Runs(root), is_read_only
        self._jobs: dict[Cell, CellJob | None] = {}
        self._finished: dict[Cell, Outcome] = {}

    def refresh(self) -> None:
        """Reads new runs; the first time, also all images of all recipes."""
        has_new = self._runs.refresh()
        new = [cell for cell in self.plan.cells if self._needs_refresh(cell, has_new=has_new)]
        if new:
            # Only for this call, as the lists of all images may be large
            workspace = Workspace(
                self._runs.root, torch.device("cpu"), is_read_only=self._is_read_only
            )
            with progress("looking for finished cells", len(new)) as advance:
                for n_done, cell in enumerate(new):
                    advance(n_done, cell.label)
                    self._jobs[cell] = None
                    with contextlib.suppress(KdedgeError):  # its own process reports the error
                        self._jobs[cell] = find_job(cell, workspace, self._runs)
        for cell in self.plan.cells:
            outcome = None if cell in self._finished else self._find_result(cell)
            if outcome is not None:
                self._finished[cell] = outcome

    def _needs_refresh(self, cell: Cell, *, has_new: bool) -> bool:
        """Whether the job of a cell is unknown and may be found now."""
        job = self._jobs.get(cell)
        if job is None:  # the process of a new run may have downloaded its files
            return has_new or cell not in self._jobs
        is_taught = job.teacher is not None and bool(self._runs.finished(job.teacher))
        return job.key is None and is_taught

    def outcome(self, cell: Cell) -> Outcome:
        """The state of a cell at the last `refresh`."""
        if cell in self._finished:
            return self._finished[cell]
        failure = self.folder.failure(cell)
        if failure is not None:
            return Outcome("failed", failure=failure)
        if self.run_to_measure(cell) is not None:
            return Outcome("not measured")
        has_begun = any(map(self._runs.has_begun, self._keys(cell)))
        return Outcome("interrupted" if has_begun else "not begun")

    def is_finished(self, cell: Cell) -> bool:
        """Whether nothing is left to do for a cell."""
        return cell in self._finished

    def outcomes(self) -> dict[Cell, Outcome]:
        """The states of all cells."""
        return {cell: self.outcome(cell) for cell in self.plan.cells}

    def trains(self, cell: Cell) -> set[str] | None:
        """Keys of the jobs that a cell's command would train now, its teacher's included.

        None if unknown, as its weights or images are missing or damaged.
        """
        if cell.source is None and self._jobs.get(cell) is None:
            return None
        return {key for key in self._keys(cell) if not self._runs.finished(key)}

    def _keys(self, cell: Cell) -> set[str]:
        job = self._jobs.get(cell)
        return set() if job is None else job.keys

    def run_to_measure(self, cell: Cell) -> FinishedRun | None:
        """The finished run of a cell's job if its accuracies are unknown; else None."""
        job = self._jobs.get(cell.source or cell)
        runs = [] if job is None else self._runs.finished(job.key)
        return runs[0] if runs else None

    def measured(self, cell: Cell, run: FinishedRun, result: EvalResult) -> None:
        """Records a run's accuracies on a cell's test images, unless the images have changed."""
        job = self._jobs.get(cell)
        if job is not None and run.record.key is not None and job.test.fits(result):
            record = CellAccuracy(run.folder.name, run.record.key, job.test.template, result)
            self.folder.write(cell, record)

    def _find_result(self, cell: Cell) -> Outcome | None:
        """The accuracies of a cell on its current test images, wherever they are recorded."""
        job, trained = self._jobs.get(cell), self._jobs.get(cell.source or cell)
        if job is None or trained is None:
            return None
        measured = self.folder.measurement(cell)
        for run in self._runs.finished(trained.key):
            results = [] if cell.source is not None else [_evaluation(run).get(cell.role)]
            made = (run.folder.name, run.record.key, job.test.template)
            if measured is not None and (measured.run, measured.job, measured.template) == made:
                results.append(measured.result)
            for result in results:
                if result is not None and job.test.fits(result):
                    return Outcome("finished", run.folder.path, result, _seconds(run))
        return None


def _evaluation(run: FinishedRun) -> dict[str, EvalResult]:
    try:
        return read_evaluation(run.folder)
    except KdedgeError:  # damaged: the run is measured again
        return {}


def _seconds(run: FinishedRun) -> float | None:
    summary = run.record.summary
    parts = summary.rounds if summary.training is None else [summary.training]
    return sum(part.seconds or 0.0 for part in parts) if parts else None
