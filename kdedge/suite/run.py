"""Running a suite: each cell in a process of its own, going on where the last call ended."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge._files import explain_os_error, read_json
from kdedge._lock import is_locked, locked
from kdedge._progress import progress
from kdedge.config.load import load_recipe
from kdedge.errors import CellsFailed, DataError, Interrupted, KdedgeError, ResourceError
from kdedge.results import EvalResult
from kdedge.suite.plan import ZERO_SHOT, Cell, Plan, measured_on
from kdedge.suite.process import Ended, run_kdedge
from kdedge.suite.records import CellRecord, Records, without_classes
from kdedge.training.runs import RunFolder

log = logging.getLogger(__name__)


def run_suite(
    plan: Plan,
    records: Records,
    *,
    root: Path,
    device: str | None,
    after_each: Callable[[], None],
) -> None:
    """Runs every cell that is not finished; one that fails keeps no other from running.

    Args:
        plan: the checked suite.
        records: where its cells are kept.
        root: folder of all runs.
        device: where to train, as --device takes it; None for its default.
        after_each: called when a cell has ended, however it did.

    Raises:
        Interrupted: a signal ended it; the running cell has saved its state.
        ResourceError: the suite's folder may not be written, or another process works in it.
    """
    lock = records.folder / ".lock"
    try:
        records.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, records.folder) from error
    if is_locked(lock):
        raise ResourceError(
            f"{records.folder} is in use: another process runs this suite.\n"
            "  Wait for it or stop it; finished cells are kept."
        )
    with locked(lock), progress(f"suite {plan.loaded.suite.name}", len(plan.cells)) as advance:
        left = [cell for cell in plan.cells if not records.is_finished(cell)]
        n_kept = len(plan.cells) - len(left)
        if n_kept:
            log.info("%d of %d cells are finished already.", n_kept, len(plan.cells))
        runner = _Runner(plan, records, root.absolute(), device)
        for number, cell in enumerate(left, start=n_kept + 1):
            advance(number - 1, cell.label)
            log.info("[%d/%d] %s: %s", number, len(plan.cells), cell.label, cell.arguments[0])
            try:
                _say(cell, runner.run(cell), records)
            finally:
                after_each()


def check_failed(plan: Plan, records: Records) -> None:
    """Says which cells failed, once all have ended.

    Raises:
        CellsFailed: some did.
    """
    failed = [
        (cell, record)
        for cell in plan.cells
        if (record := records.read(cell)) is not None and record.status == "failed"
    ]
    if not failed:
        return
    lines = [
        f"  {cell.label}: exit code {record.exit_code}, {records.log(cell)}"
        for cell, record in failed
    ]
    code = failed[0][1].exit_code or 1
    raise CellsFailed(
        f"{len(failed)} of {len(plan.cells)} cells failed.\n"
        + "\n".join(lines)
        + "\n  Run the same command to try them again; finished cells are kept.",
        exit_code=max(code, 1),
    )


def _say(cell: Cell, record: CellRecord, records: Records) -> None:
    if record.result is None:
        message = "\n  ".join(record.last_lines)
        log.warning(
            "%s failed with exit code %s; its log is %s.\n  %s",
            cell.label,
            record.exit_code,
            records.log(cell),
            message,
        )
        return
    found = record.result
    figures = {"base": found.base, "novel": found.novel, "HM": found.harmonic_mean}
    if found.split == "all":
        figures = {"accuracy": found.all}
    text = ", ".join(f"{name} {value:.2f}" for name, value in figures.items() if value is not None)
    took = "taken from" if record.seconds is None else f"{record.seconds:.0f} s,"
    log.info("  %s; %s %s", text, took, record.run)


@dataclass(frozen=True)
class _Runner:
    """Runs cells.

    Attributes:
        plan: the suite.
        records: where they are kept.
        root: folder of all runs, absolute.
        device: as --device takes it.
    """

    plan: Plan
    records: Records
    root: Path
    device: str | None

    def run(self, cell: Cell) -> CellRecord:
        """Runs a cell to its end and records how it ended.

        Raises:
            Interrupted: a signal came; the record says how far the cell is.
        """
        measured_already = self._measured_by_another(cell)
        if measured_already is not None:
            return self.records.write(cell, measured_already)
        record = self._run(cell, "--resume")
        if record.status == "finished" and not _is_of(cell, record):
            log.info("  %s was measured on other images: this is a new run.", record.run)
            record = self._run(cell)
        return record

    def _measured_by_another(self, cell: Cell) -> CellRecord | None:
        """Zero-shot CLIP, where another cell's run measured it on the same backbone and images."""
        if not cell.is_zero_shot:
            return None
        for other in self.plan.cells:
            record = self.records.read(other) if other.zero_shot == cell.zero_shot else None
            if record is not None and record.zero_shot is not None:
                found = {"run": record.run, "result": record.zero_shot}
                return CellRecord.of(cell, "finished", **found, zero_shot=record.zero_shot)
        return None

    def _run(self, cell: Cell, *options: str) -> CellRecord:
        device = () if self.device is None else ("--device", self.device)
        arguments = (*cell.arguments, *options, "--runs", str(self.root), *device, "--json")
        self.records.write(cell, CellRecord.of(cell, "running", arguments=arguments))
        start = time.monotonic()
        ended = run_kdedge(
            arguments, log_file=self.records.log(cell), lock_file=self.records.lock(cell)
        )
        found = _found(cell, ended)
        seconds = time.monotonic() - start
        record = CellRecord.of(cell, **found, arguments=arguments, seconds=seconds)
        self.records.write(cell, record)
        if ended.received is not None:
            n_done = sum(self.records.is_finished(other) for other in self.plan.cells)
            raise Interrupted(
                f"Interrupted in {cell.label}; {n_done} of {len(self.plan.cells)} cells are"
                " finished.\n  Run the same command to go on from there.",
                signum=ended.received,
            )
        return record


def _found(cell: Cell, ended: Ended) -> dict[str, Any]:
    """What a process's end says about its cell, as fields of the record."""
    if ended.code != 0:
        status = "failed" if ended.received is None else "interrupted"
        lines = ended.last_lines
        if ended.code < 0:
            lines = (*lines, f"Its process was killed by signal {-ended.code}.")
        return {"status": status, "exit_code": ended.code, "last_lines": lines}
    try:
        run = RunFolder.open(Path(json.loads(ended.stdout)[cell.role]["path"]))
        evaluation = read_json(run.evaluation)
        result = EvalResult.from_dict(evaluation[cell.role])
        zero_shot = EvalResult.from_dict(evaluation[ZERO_SHOT])
    except (KdedgeError, ValueError, KeyError, TypeError) as error:
        lines = (f"Its result cannot be read: {error!r}" if not str(error) else str(error),)
        return {"status": "failed", "exit_code": DataError.exit_code, "last_lines": lines}
    return {
        "status": "finished",
        "run": str(run.path),
        "result": without_classes(result),
        "zero_shot": without_classes(zero_shot),
    }


def _is_of(cell: Cell, record: CellRecord) -> bool:
    """Whether a run that was found finished was measured as the cell is to be.

    What it was trained on is the same, or it would not have been found.
    """
    assert record.run is not None  # it is finished
    run = RunFolder.open(Path(record.run))
    return measured_on(load_recipe(run.recipe).recipe) == cell.measured
