"""Runs the unfinished cells of a suite, each in its own process, and records how they end.

No two cells that run at once train the same model.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdedge.errors import CellsFailed, DataError, Interrupted, signum_of
from kdedge.files import explained, locked
from kdedge.progress import Advance, progress
from kdedge.records.evaluation import EvalResult
from kdedge.records.record import read_record
from kdedge.runtime.threads import shared_threads
from kdedge.setup.workspace import choose_device
from kdedge.suite.ledger import Failure, FinishedRun, Ledger
from kdedge.suite.plan import Cell, measuring_overrides

log = logging.getLogger(__name__)

_POLL_EVERY_S = 0.1
_LOOK_EVERY_S = 2.0
"""Seconds between two checks for cells that may start although none has ended: a teacher that
others wait for is finished before the student of its cell."""
_LAST_LINES = 12


@dataclass(frozen=True)
class _Running:
    """A cell's process.

    Attributes:
        process: the process, in a session of its own: a terminal's Ctrl-C does not reach it.
        log_start: where its part of the cell's log begins.
        measures: the run whose accuracy it measures, if it trains nothing.
    """

    process: subprocess.Popen[bytes]
    log_start: int
    measures: FinishedRun | None


class Runner:
    """Runs the unfinished cells of a suite in processes; use it in the thread that gets signals.

    Args:
        ledger: the suite's ledger.
        root: folder of all runs.
        device: where to train, as --device takes it; None for its default.
        n_jobs: largest number of cells that run at the same time.
        after_each: called when a cell has ended, whatever its result.

    Raises:
        SetupError: several cells are to share a device that does not exist.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        root: Path,
        device: str | None,
        n_jobs: int,
        after_each: Callable[[], None],
    ) -> None:
        self._ledger, self._folder, self._cells = ledger, ledger.folder, ledger.plan.cells
        self._n_jobs, self._after_each = n_jobs, after_each
        self._options = ["--runs", str(root.absolute())]
        self._options += [] if device is None else ["--device", device]
        shares = n_jobs > 1 and choose_device(device).type == "cpu"
        self._environment = shared_threads(n_jobs) if shares else {}
        self._queue: list[Cell] = []
        self._running: dict[Cell, _Running] = {}

    @property
    def _n_done(self) -> int:
        """Number of cells that have ended, whatever their result."""
        return len(self._cells) - len(self._queue) - len(self._running)

    def run(self) -> None:
        """Runs every unfinished cell; a failed one does not stop the others.

        Raises:
            Interrupted: a signal ended it; the running cells have saved their state.
            ResourceError: the suite's folder may not be written.
            InUseError: another process uses it.
        """
        folder = self._folder.path
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        remedy = "Wait for that run of this suite or stop it; finished cells are kept."
        with locked(folder / ".lock", remedy=remedy):
            self._ledger.refresh()
            self._queue = [cell for cell in self._cells if not self._ledger.is_finished(cell)]
            if self._n_done:
                log.info("%d of %d cells are finished already.", self._n_done, len(self._cells))
            what = f"suite {self._ledger.plan.loaded.suite.name}"
            with progress(what, len(self._cells), done=self._n_done) as advance:
                self._run(advance)

    def _run(self, advance: Advance) -> None:
        looked = -_LOOK_EVERY_S
        try:
            while self._running or self._queue:
                ended = [cell for cell, x in self._running.items() if x.process.poll() is not None]
                for cell in ended:
                    self._take(cell, self._running.pop(cell))
                if ended or time.monotonic() - looked > _LOOK_EVERY_S:
                    self._start_what_may()
                    looked = time.monotonic()
                    advance(self._n_done, "; ".join(cell.label for cell in self._running))
                time.sleep(_POLL_EVERY_S)
        except KeyboardInterrupt as error:
            signum = signum_of(error)
            labels = " and ".join(cell.label for cell in self._running)
            self._stop(signum)
            self._ledger.refresh()
            n_finished = sum(map(self._ledger.is_finished, self._cells))
            raise Interrupted(
                f"Interrupted{' in ' if labels else ''}{labels};"
                f" {n_finished} of {len(self._cells)} cells are finished.\n"
                "  Run the same command to continue.",
                signum=signum,
            ) from error
        except BaseException:
            self._stop(signal.SIGTERM)
            raise

    def _stop(self, signum: int) -> None:
        """Hands a signal on, and later ones too, until all processes have ended."""
        processes = [running.process for running in self._running.values()]
        while any(process.poll() is None for process in processes):
            try:
                for process in processes:
                    process.send_signal(signum)
                for process in processes:
                    process.wait()
            except KeyboardInterrupt as error:
                signum = signum_of(error)

    def _start_what_may(self) -> None:
        """Starts cells of the queue that need not wait, up to `n_jobs`."""
        self._ledger.refresh()
        while self._queue and len(self._running) < self._n_jobs:
            cell = next_cell(self._queue, list(self._running), self._ledger.trains)
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
        if cell.command == "distill":  # the row is about this teacher, even if another is better
            arguments.append("--keep-teacher")
        if run is not None:
            changes = measuring_overrides(cell.loaded.recipe)
            options = [word for change in changes for word in ("--set", change)]
            answer = self._folder.answer(cell)
            answer.unlink(missing_ok=True)
            arguments = ["eval", str(run.folder.path), *options, "--output", str(answer)]
            if cell.source is None:
                log.info("%s was measured on other images; measuring it again.", run.folder.path)
        number = len(self._cells) - len(self._queue)
        log.info("[%d/%d] %s: %s", number, len(self._cells), cell.label, arguments[0])
        file = self._folder.log(cell)
        with explained(file):
            stderr = file.open("ab")
        with stderr:
            log_start = stderr.seek(0, os.SEEK_END)
            process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
                [sys.executable, "-m", "kdedge", *arguments, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._running[cell] = _Running(process, log_start, run)

    def _take(self, cell: Cell, running: _Running) -> None:
        """Records how a cell's process has ended."""
        code = running.process.returncode
        if code != 0:
            lines = _last_lines(self._folder.log(cell), running.log_start)
            killed = [f"Its process was killed by signal {-code}."] if code < 0 else []
            self._fail(cell, code, *lines, *killed)
            return
        if running.measures is not None:
            result = read_record(EvalResult, self._folder.answer(cell), remedy="Run it again.")
            self._ledger.measured(cell, running.measures, result)
        self._ledger.refresh()
        if self._ledger.is_finished(cell):
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
        self._folder.write(cell, Failure(exit_code, last_lines))
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
        result = outcome.result
        assert result is not None  # it is finished
        figures = {"base": result.base, "novel": result.novel, "HM": result.harmonic_mean}
        if result.split == "all":
            figures = {"accuracy": result.all}
        known = [f"{name} {value:.2f}" for name, value in figures.items() if value is not None]
        log.info("  %s: %s; %s", cell.label, ", ".join(known), outcome.run)
        self._after_each()


def _last_lines(path: Path, start: int) -> tuple[str, ...]:
    """The last error message, or the last lines if there is none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    starts = [
        number
        for number, line in enumerate(lines)
        if line.startswith("kdedge: ") and not line.startswith("kdedge: warning: ")
    ]
    return tuple(lines[starts[-1] if starts else 0 :][-_LAST_LINES:])


def next_cell(
    queue: Sequence[Cell],
    running: Collection[Cell],
    trains: Callable[[Cell], set[str] | None],
) -> Cell | None:
    """The first cell of a queue that need not wait for another; None if all must.

    A cell waits for:

    * a running cell that trains the same model, such as its teacher;
    * all running cells, if it is unknown what it or they train, as weights are missing;
    * the cell whose run it measures.

    Args:
        queue: unfinished cells, in the plan's order.
        running: cells whose processes run.
        trains: returns the keys of the jobs that a cell's command would train now; None if unknown.
    """
    busy: set[str] = set()
    for cell in running:
        keys = trains(cell)
        if keys is None:
            return None
        busy |= keys
    for cell in queue:
        keys = trains(cell)
        may_start = not running if keys is None else busy.isdisjoint(keys)
        if may_start and cell.source not in (*running, *queue):
            return cell
    return None


def check_failed(ledger: Ledger) -> None:
    """Raises an error that lists the failed cells.

    Raises:
        CellsFailed: some did.
    """
    outcomes = ledger.outcomes()
    failed = {cell: end.failure for cell, end in outcomes.items() if end.failure is not None}
    if not failed:
        return
    lines = [
        f"  {cell.label}: exit code {failure.exit_code}, {ledger.folder.log(cell)}"
        for cell, failure in failed.items()
    ]
    code = next(iter(failed.values())).exit_code
    if code < 0:  # the signal that killed it
        code = 128 - code
    raise CellsFailed(
        f"{len(failed)} of {len(outcomes)} cells failed.\n"
        + "\n".join(lines)
        + "\n  Run the same command to try them again; finished cells are kept.",
        exit_code=code,
    )
