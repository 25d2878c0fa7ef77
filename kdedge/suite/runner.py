"""The processes of a suite's cells: started, watched, interrupted, and recorded as they end."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdedge._lock import is_locked
from kdedge._progress import Advance
from kdedge.config.load import load_recipe, read_text
from kdedge.errors import DataError, Interrupted, KdedgeError, RecipeError
from kdedge.records import parse_record
from kdedge.results import EvalResult
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_evaluation
from kdedge.suite.depends import measured_lists, measured_on
from kdedge.suite.models import FinishedModels
from kdedge.suite.plan import ZERO_SHOT, Cell, Plan
from kdedge.suite.process import CollectedSignals, Ended, KdedgeProcess
from kdedge.suite.records import CellRecord, Records, without_classes
from kdedge.suite.schedule import next_cell

log = logging.getLogger(__name__)

_POLL_EVERY_S = 0.1
_LOOK_EVERY_S = 2.0
"""How often cells are looked for that may start though none has ended: a teacher that others wait
for is finished before the student of its cell is."""


class Runner:
    """Runs what is left of a suite in processes, in the one thread that gets the signals.

    Args:
        plan: the suite.
        records: where its cells are kept.
        root: folder of all runs, absolute.
        device: as --device takes it.
        environment: variables of the processes over this one's.
        n_jobs: processes at the same time.
        after_each: called when a cell has ended.
    """

    def __init__(
        self,
        plan: Plan,
        records: Records,
        *,
        root: Path,
        device: str | None,
        environment: Mapping[str, str],
        n_jobs: int,
        after_each: Callable[[], None],
    ) -> None:
        self._plan, self._records = plan, records
        self._root, self._device, self._environment = root, device, environment
        self._n_jobs, self._after_each = n_jobs, after_each
        self._queue = [cell for cell in plan.cells if not records.is_finished(cell)]
        self._running: dict[Cell, KdedgeProcess] = {}
        self._to_be_new: set[Cell] = set()
        self._interrupted: list[Cell] = []
        self._finished = FinishedModels(root)

    @property
    def n_done(self) -> int:
        """Cells that have ended, however they did."""
        return len(self._plan.cells) - len(self._queue) - len(self._running)

    def run(self, advance: Advance) -> None:
        """Runs all cells to their end.

        Args:
            advance: takes how many have ended.

        Raises:
            Interrupted: a signal came; the records say how far the cells are.
        """
        if self.n_done:
            log.info("%d of %d cells are finished already.", self.n_done, len(self._plan.cells))
        for cell in self._outlived():
            log.info(
                "%s: its process outlived a suite that was killed and is waited for.", cell.label
            )
        signals = CollectedSignals()
        with signals:
            try:
                self._run(signals, advance)
            except BaseException:
                for process in self._running.values():
                    process.send(signal.SIGTERM)
                for process in self._running.values():
                    process.wait()
                raise
        if signals.received is not None:
            raise self._as_interrupted(signals.received)

    def _run(self, signals: CollectedSignals, advance: Advance) -> None:
        looked = -math.inf
        while self._running or (self._queue and signals.received is None):
            for signum in signals.take():
                self._interrupted = self._interrupted or list(self._running)
                for process in self._running.values():
                    process.send(signum)
            ended = self._take_ended()
            if signals.received is None and (ended or time.monotonic() - looked > _LOOK_EVERY_S):
                self._start_what_may()
                looked = time.monotonic()
                advance(self.n_done, "; ".join(cell.label for cell in self._running))
            time.sleep(_POLL_EVERY_S)

    def _as_interrupted(self, signum: int) -> Interrupted:
        n_finished = sum(map(self._records.is_finished, self._plan.cells))
        labels = " and ".join(cell.label for cell in self._interrupted)
        return Interrupted(
            f"Interrupted{' in ' if labels else ''}{labels};"
            f" {n_finished} of {len(self._plan.cells)} cells are finished.\n"
            "  Run the same command to go on from there.",
            signum=signum,
        )

    def _outlived(self) -> list[Cell]:
        """Cells of the queue that a process works on which a killed suite has left."""
        return [cell for cell in self._queue if is_locked(self._records.lock(cell))]

    def _start_what_may(self) -> None:
        """Starts cells of the queue that need not wait, as far as there is room."""
        while self._queue and len(self._running) < self._n_jobs:
            outlived = self._outlived()
            busy = [*self._running, *outlived]
            if len(busy) >= self._n_jobs:
                return
            free = [cell for cell in self._queue if cell not in outlived]
            cell = next_cell(free, busy, is_finished=self._finished.have)
            if cell is None:
                return
            self._queue.remove(cell)
            known = self._known_without_a_process(cell)
            if known is None:
                self._running[cell] = self._start(cell)
            else:
                self._end(cell, known)

    def _start(self, cell: Cell) -> KdedgeProcess:
        number = len(self._plan.cells) - len(self._queue)
        log.info("[%d/%d] %s: %s", number, len(self._plan.cells), cell.label, cell.arguments[0])
        arguments = self._arguments(cell)
        self._records.write(cell, CellRecord.of(cell, "running", arguments=arguments))
        return KdedgeProcess(
            arguments,
            log_file=self._records.log(cell),
            lock_file=self._records.lock(cell),
            environment=self._environment,
        )

    def _arguments(self, cell: Cell) -> tuple[str, ...]:
        device = () if self._device is None else ("--device", self._device)
        where = ("--runs", str(self._root), *device, "--json")
        if cell.source is not None:
            trained = self._records.read(cell.source)
            assert trained is not None  # the cell would have waited for it
            assert trained.run is not None  # or failed with it
            command, *options = cell.arguments
            return (command, trained.run, *options, *where)
        resume = () if cell in self._to_be_new else ("--resume",)
        return (*cell.arguments, *resume, *where)

    def _take_ended(self) -> bool:
        """Records the cells whose processes have ended; whether there were any."""
        found = [(cell, process.poll()) for cell, process in self._running.items()]
        for cell, ended in found:
            if ended is None:
                continue
            del self._running[cell]
            record = CellRecord.of(
                cell,
                **_found(cell, ended, is_interrupted=cell in self._interrupted),
                arguments=self._arguments(cell),
                seconds=ended.seconds,
            )
            if record.status == "finished" and not (
                cell in self._to_be_new or _is_of(cell, record)
            ):
                log.info("  %s was measured on other images: this is a new run.", record.run)
                self._to_be_new.add(cell)
                self._queue.insert(0, cell)
            else:
                self._end(cell, record)
        return any(ended is not None for _, ended in found)

    def _end(self, cell: Cell, record: CellRecord) -> None:
        try:
            self._records.write(cell, record)
            _say(cell, record, self._records)
        finally:
            self._after_each()

    def _known_without_a_process(self, cell: Cell) -> CellRecord | None:
        """How a cell ends that needs no process.

        Another has measured it or has not trained it, or its recipe is not the planned one.
        """
        if cell.source is None:
            return self._measured_by_another(cell) or self._of_changed_recipe(cell)
        trained = self._records.read(cell.source)
        if trained is not None and trained.status == "finished":
            return None
        code = None if trained is None else trained.exit_code
        lines = (f"{cell.source.label}, whose run it measures, did not finish.",)
        return CellRecord.of(cell, "failed", exit_code=code, last_lines=lines)

    def _of_changed_recipe(self, cell: Cell) -> CellRecord | None:
        """A cell whose process would read another recipe than its key and its table are of."""
        file = cell.arguments[1]
        try:
            is_same = read_text(Path(file)) == cell.recipe_text
        except RecipeError:
            is_same = False
        if is_same:
            return None
        lines = (
            f"{file} has changed since this suite was started.",
            "  Run the same command again: it goes on with the recipe as it is now.",
        )
        return CellRecord.of(cell, "failed", exit_code=RecipeError.exit_code, last_lines=lines)

    def _measured_by_another(self, cell: Cell) -> CellRecord | None:
        """Zero-shot CLIP, where another cell's run measured it on the same backbone and images."""
        if not cell.is_zero_shot:
            return None
        for other in self._plan.cells:
            record = self._records.read(other) if other.zero_shot == cell.zero_shot else None
            if record is not None and record.zero_shot is not None:
                found = {"run": record.run, "result": record.zero_shot}
                return CellRecord.of(cell, "finished", **found, zero_shot=record.zero_shot)
        return None


def _say(cell: Cell, record: CellRecord, records: Records) -> None:
    if record.status == "interrupted":
        return  # once all have ended, one message names them
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
    log.info("  %s: %s; %s %s", cell.label, text, took, record.run)


def _found(cell: Cell, ended: Ended, *, is_interrupted: bool) -> dict[str, Any]:
    """What a process's end says about its cell, as fields of the record."""
    if ended.code != 0:
        status = "interrupted" if is_interrupted else "failed"
        lines = ended.last_lines
        if ended.code < 0:
            lines = (*lines, f"Its process was killed by signal {-ended.code}.")
        return {"status": status, "exit_code": ended.code, "last_lines": lines}
    try:
        answer = json.loads(ended.stdout)
        if cell.source is not None:
            run = RunFolder.open(Path(answer.pop("run")))
            evaluation = {str(cell.role): _read_answer(answer)}
        else:
            run = RunFolder.open(Path(answer[cell.role]["path"]))
            evaluation = read_evaluation(run)
        result = without_classes(evaluation[cell.role])
        plain = evaluation.get(ZERO_SHOT)  # an image encoder alone has none
        zero_shot = None if plain is None else without_classes(plain)
    except (KdedgeError, ValueError, KeyError, TypeError, AttributeError) as error:
        lines = (f"Its result cannot be read: {error!r}" if not str(error) else str(error),)
        return {"status": "failed", "exit_code": DataError.exit_code, "last_lines": lines}
    return {
        "status": "finished",
        "run": str(run.path),
        "result": result,
        "zero_shot": zero_shot,
    }


def _read_answer(values: object) -> EvalResult:
    return parse_record(
        EvalResult, json.dumps(values), where="The evaluation", remedy="See the cell's log."
    )


def _is_of(cell: Cell, record: CellRecord) -> bool:
    """Whether a run that was found finished was measured as the cell is to be.

    What it was trained on is the same, or it would not have been found. A cell that trains nothing
    has measured just now.
    """
    if cell.source is not None:
        return True
    assert record.run is not None  # it is finished
    run = RunFolder.open(Path(record.run))
    recipe = load_recipe(run.recipe).recipe
    # A list that was written after the run was measured may have said something else then
    measured_at = run.evaluation.stat().st_mtime
    is_older = all(path.stat().st_mtime <= measured_at for path in measured_lists(recipe))
    return is_older and measured_on(recipe) == cell.measured
