"""The state of a suite's cells, read from the runs of their jobs and from the suite's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from kdedge.errors import KdedgeError
from kdedge.lock import is_locked
from kdedge.progress import progress
from kdedge.results import EvalResult
from kdedge.runs.results import read_evaluation
from kdedge.setup.workspace import Workspace
from kdedge.suite.folder import Failure, Measurement, SuiteFolder
from kdedge.suite.jobs import KnownJob, Run, Runs, find_job
from kdedge.suite.plan import ZERO_SHOT, Cell, Plan

Status = Literal["not begun", "running", "interrupted", "not measured", "finished", "failed"]


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

    status: Status
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
        """Starts without any states; `look` reads them.

        Args:
            plan: the suite.
            folder: the suite's folder.
            root: folder of all runs.
            is_read_only: write no caches.
        """
        self.plan, self.folder = plan, folder
        self._runs, self._is_read_only = Runs(root), is_read_only
        self._jobs: dict[Cell, KnownJob | None] = {}
        self._finished: dict[Cell, Outcome] = {}

    def look(self) -> None:
        """Reads new runs; the first time, also all images of all recipes."""
        self._runs.look()
        new = [cell for cell in self.plan.cells if self._may_be_known_better(cell)]
        if new:
            # Only for this call, as the lists of all images may be large
            workspace = Workspace(
                self._runs.root, torch.device("cpu"), is_read_only=self._is_read_only
            )
            with progress("looking for finished cells", len(new)) as advance:
                for n_done, cell in enumerate(new):
                    advance(n_done, cell.label)
                    self._jobs[cell] = self._find_job(cell, workspace)
        for cell in self.plan.cells:
            found = None if cell in self._finished else self._find_result(cell)
            if found is not None:
                self._finished[cell] = found

    def look_for(self, cell: Cell) -> None:
        """Looks for the run of a cell whose process has ended."""
        if self._jobs.get(cell) is None:  # its process may have downloaded others' files, too
            self._jobs = {other: job for other, job in self._jobs.items() if job is not None}
        self.look()

    def _may_be_known_better(self, cell: Cell) -> bool:
        if cell not in self._jobs:
            return True
        job = self._jobs[cell]
        if job is None or job.key is not None or job.teacher is None:
            return False
        return bool(self._runs.finished(job.teacher))

    def _find_job(self, cell: Cell, workspace: Workspace) -> KnownJob | None:
        try:
            return find_job(cell, workspace, self._runs)
        except KdedgeError:  # its own process reports the error
            return None

    def outcome(self, cell: Cell) -> Outcome:
        """The state of a cell at the last `look`."""
        if cell in self._finished:
            return self._finished[cell]
        keys = self._keys(cell)
        failure = self.folder.failure(cell)
        if failure is not None and (failure.job in keys or (failure.job is None and not keys)):
            return Outcome("failed", failure=failure)
        if is_locked(self.folder.lock(cell)):
            return Outcome("running")
        if self.run_to_measure(cell) is not None:
            return Outcome("not measured")
        has_begun = any(map(self._runs.has_begun, keys))
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

    def zero_shot(self, cell: Cell) -> object:
        """Equal for cells with the same zero-shot CLIP; None if no run of the cell measures it."""
        job = self._jobs.get(cell)
        return None if job is None or job.backbone is None else (job.backbone, job.test)

    def run_to_measure(self, cell: Cell) -> Run | None:
        """The finished run of a cell's job if its accuracies are unknown; else None."""
        job = self._jobs.get(cell.source or cell)
        runs = [] if job is None or job.key is None else self._runs.finished(job.key)
        return runs[0] if runs else None

    def fail(self, cell: Cell, exit_code: int, *last_lines: str) -> None:
        """Records that a cell has failed."""
        job = self._jobs.get(cell)
        keys = () if job is None else (job.key, job.teacher)
        key = next((key for key in keys if key is not None), None)
        self.folder.write(cell, Failure(key, exit_code, last_lines))

    def measured(self, cell: Cell, run: Run, result: EvalResult) -> None:
        """Records a run's accuracies on a cell's test images, unless the images have changed."""
        job = self._jobs.get(cell)
        if job is not None and run.key is not None and job.test.fits(result):
            name, template = run.folder.name, job.test.classes.template
            record = Measurement(name, run.key, job.test.list_hash, template, result)
            self.folder.write(cell, record)

    def _find_result(self, cell: Cell) -> Outcome | None:
        """The accuracies of a cell on its current test images, wherever they are recorded."""
        job, trained = self._jobs.get(cell), self._jobs.get(cell.source or cell)
        if job is None or trained is None:
            return None
        runs = [] if trained.key is None else self._runs.finished(trained.key)
        if cell.source is None:
            for run in runs:
                result = _evaluation(run).get(cell.role)
                if result is not None and _is_measured_on(run, result, cell, job):
                    return Outcome("finished", run.folder.path, result, _seconds(run))
        if cell.is_zero_shot:
            for run in self._runs.finished():
                if run.record.hashes.get("backbone") != job.backbone:
                    continue
                result = _evaluation(run).get(ZERO_SHOT)
                if result is not None and _is_measured_on(run, result, cell, job):
                    return Outcome("finished", run.folder.path, result)
        record = self.folder.measurement(cell)
        test = (job.test.list_hash, job.test.classes.template)
        if record is None or (record.test_list, record.template) != test:
            return None
        for run in runs:
            is_its = (run.folder.name, run.key) == (record.run, record.job)
            if is_its and job.test.fits(record.result):
                return Outcome("finished", run.folder.path, record.result, _seconds(run))
        return None


def _evaluation(run: Run) -> dict[str, EvalResult]:
    try:
        return read_evaluation(run.folder)
    except KdedgeError:  # damaged: the run is measured again
        return {}


def _is_measured_on(run: Run, result: EvalResult, cell: Cell, job: KnownJob) -> bool:
    """Whether a run's evaluation is on a cell's current test images and class names."""
    test = job.test
    if not test.fits(result) or run.record.measured_on != test.list_hash:
        return False
    if run.key == job.key:
        return True  # the key includes the template
    try:
        return run.recipe.classes.template == cell.loaded.recipe.classes.template
    except KdedgeError:
        return False


def _seconds(run: Run) -> float | None:
    summary = run.record.summary
    parts = summary.rounds if summary.training is None else [summary.training]
    return sum(part.seconds or 0.0 for part in parts) if parts else None
