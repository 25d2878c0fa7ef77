"""Starts, watches and interrupts the processes of a suite's cells, and records how they end."""

from __future__ import annotations

import json
import logging
import math
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdedge.errors import DataError, Interrupted
from kdedge.lock import is_locked
from kdedge.progress import Advance
from kdedge.records import parse_record
from kdedge.results import EvalResult
from kdedge.suite.jobs import Run
from kdedge.suite.ledger import Ledger
from kdedge.suite.plan import Cell, measuring_overrides
from kdedge.suite.process import CollectedSignals, Ended, KdedgeProcess
from kdedge.suite.schedule import next_cell

log = logging.getLogger(__name__)

_POLL_EVERY_S = 0.1
_LOOK_EVERY_S = 2.0
"""Seconds between two checks for cells that may start although none has ended: a teacher that
others wait for is finished before the student of its cell."""


@dataclass(frozen=True)
class _Running:
    """A cell's process; `measures` is the run whose accuracy it measures, if it trains nothing."""

    process: KdedgeProcess
    measures: Run | None


class Runner:
    """Runs the unfinished cells of a suite in processes; use it in the thread that gets signals.

    Args:
        ledger: the suite's ledger, after its first `look`.
        options: options of all commands: folder of runs and device.
        environment: variables of the processes that override this one's.
        n_jobs: largest number of processes at the same time.
        after_each: called when a cell has ended.
    """

    def __init__(
        self,
        ledger: Ledger,
        options: tuple[str, ...],
        *,
        environment: Mapping[str, str],
        n_jobs: int,
        after_each: Callable[[], None],
    ) -> None:
        self._ledger, self._folder, self._cells = ledger, ledger.folder, ledger.plan.cells
        self._options, self._environment = options, environment
        self._n_jobs, self._after_each = n_jobs, after_each
        self._queue = [cell for cell in self._cells if not ledger.is_finished(cell)]
        self._running: dict[Cell, _Running] = {}
        self._interrupted: list[Cell] = []
        self._signals = CollectedSignals()

    @property
    def n_done(self) -> int:
        """Number of cells that have ended, whatever their result."""
        return len(self._cells) - len(self._queue) - len(self._running)

    def run(self, advance: Advance) -> None:
        """Runs all cells to their end.

        Args:
            advance: called with the number of ended cells.

        Raises:
            Interrupted: a signal arrived; the running cells have saved their state.
        """
        if self.n_done:
            log.info("%d of %d cells are finished already.", self.n_done, len(self._cells))
        for cell in self._outlived():
            log.info(
                "%s: its process still runs, from a suite that was killed; waiting for it.",
                cell.label,
            )
        signals = self._signals
        with signals:
            try:
                self._run(signals, advance)
            except BaseException:
                for running in self._running.values():
                    running.process.send(signal.SIGTERM)
                for running in self._running.values():
                    running.process.wait()
                raise
        if signals.received is not None:
            raise self._as_interrupted(signals.received)

    def _run(self, signals: CollectedSignals, advance: Advance) -> None:
        looked = -math.inf
        while self._running or (self._queue and signals.received is None):
            for signum in signals.take():
                self._interrupted = self._interrupted or list(self._running)
                for running in self._running.values():
                    running.process.send(signum)
            has_ended = self._take_ended()
            is_time = has_ended or time.monotonic() - looked > _LOOK_EVERY_S
            if signals.received is None and is_time:
                self._start_what_may()
                looked = time.monotonic()
                advance(self.n_done, "; ".join(cell.label for cell in self._running))
            time.sleep(_POLL_EVERY_S)

    def _as_interrupted(self, signum: int) -> Interrupted:
        n_finished = sum(map(self._ledger.is_finished, self._cells))
        labels = " and ".join(cell.label for cell in self._interrupted)
        return Interrupted(
            f"Interrupted{' in ' if labels else ''}{labels};"
            f" {n_finished} of {len(self._cells)} cells are finished.\n"
            "  Run the same command to continue.",
            signum=signum,
        )

    def _outlived(self) -> list[Cell]:
        """Cells of the queue that a process of a killed suite still runs."""
        return [cell for cell in self._queue if is_locked(self._folder.lock(cell))]

    def _start_what_may(self) -> None:
        """Starts cells of the queue that need not wait, up to `n_jobs`."""
        if not self._signals.is_done(self._ledger.look):
            return
        while self._queue and len(self._running) < self._n_jobs:
            outlived = self._outlived()
            busy = [*self._running, *outlived]
            if len(busy) >= self._n_jobs:
                return
            cell = next_cell(
                [cell for cell in self._queue if cell not in outlived],
                busy,
                trains=self._ledger.trains,
                zero_shot=self._ledger.zero_shot,
            )
            if cell is None:
                return
            self._queue.remove(cell)
            if self._ledger.is_finished(cell):
                self._end(cell)
            else:
                self._start(cell)

    def _start(self, cell: Cell) -> None:
        """Starts a cell's process, or records why it cannot start."""
        recipe = self._folder.begin(cell)
        run = self._ledger.run_to_measure(cell)
        if cell.source is not None and run is None:
            failure = self._ledger.outcome(cell.source).failure
            code = DataError.exit_code if failure is None else failure.exit_code
            self._fail(
                cell, code, f"{cell.source.label}, whose run this cell measures, did not finish."
            )
            return
        arguments = [cell.command, str(recipe), "--resume"]
        if run is not None:
            changes = measuring_overrides(cell.loaded.recipe)
            options = [word for change in changes for word in ("--set", change)]
            arguments = ["eval", str(run.folder.path), *options]
            if cell.source is None:
                log.info("%s was measured on other images; measuring it again.", run.folder.path)
        number = len(self._cells) - len(self._queue)
        log.info("[%d/%d] %s: %s", number, len(self._cells), cell.label, arguments[0])
        process = KdedgeProcess(
            (*arguments, *self._options, "--json"),
            log_file=self._folder.log(cell),
            lock_file=self._folder.lock(cell),
            environment=self._environment,
        )
        self._running[cell] = _Running(process, run)

    def _take_ended(self) -> bool:
        """Records the cells whose processes have ended; returns whether there were any."""
        found = [(cell, one, one.process.poll()) for cell, one in self._running.items()]
        for cell, running, ended in found:
            if ended is not None:
                del self._running[cell]
                self._take(cell, running, ended)
        return any(ended is not None for _, _, ended in found)

    def _take(self, cell: Cell, running: _Running, ended: Ended) -> None:
        if ended.code != 0 and cell in self._interrupted:
            self._after_each()  # once all have ended, one message names them
            return
        if ended.code != 0:
            killed = f"Its process was killed by signal {-ended.code}."
            self._fail(cell, ended.code, *ended.last_lines, *([killed] if ended.code < 0 else []))
            return
        if running.measures is not None:
            result = _read_answer(ended.stdout)
            if result is None:
                self._fail(cell, DataError.exit_code, "Its result cannot be read.")
                return
            self._ledger.measured(cell, running.measures, result)
        if not self._signals.is_done(lambda: self._ledger.look_for(cell)):
            self._after_each()  # the next call of the suite finds its result
        elif self._ledger.is_finished(cell):
            self._end(cell)
        elif running.measures is None and self._ledger.run_to_measure(cell) is not None:
            self._queue.insert(0, cell)
        else:
            self._fail(
                cell,
                DataError.exit_code,
                "The files that its recipe names have changed since this suite was started.",
                "  Run the same command again to use them as they are now.",
            )

    def _fail(self, cell: Cell, exit_code: int, *last_lines: str) -> None:
        self._signals.is_done(self._ledger.look)  # its teacher may be finished
        self._ledger.fail(cell, exit_code, *last_lines)
        log.warning(
            "%s failed with exit code %s; its log is %s.\n  %s",
            cell.label,
            exit_code,
            self._folder.log(cell),
            "\n  ".join(last_lines),
        )
        self._after_each()

    def _end(self, cell: Cell) -> None:
        outcome = self._ledger.outcome(cell)
        found = outcome.result
        assert found is not None  # it is finished
        figures = {"base": found.base, "novel": found.novel, "HM": found.harmonic_mean}
        if found.split == "all":
            figures = {"accuracy": found.all}
        known = [f"{name} {value:.2f}" for name, value in figures.items() if value is not None]
        log.info("  %s: %s; %s", cell.label, ", ".join(known), outcome.run)
        self._after_each()


def _read_answer(stdout: str) -> EvalResult | None:
    """The accuracies that `kdedge eval` printed; None if it printed something else."""
    try:
        values = {key: value for key, value in json.loads(stdout).items() if key != "run"}
        return parse_record(EvalResult, json.dumps(values), where="The evaluation", remedy="")
    except (DataError, ValueError, AttributeError):
        return None
