"""Runs the unfinished cells of a suite, each in its own process, and records their outcomes.

A cell's process is `kdedge teach`, `distill` or `train` with --resume, which continues an
interrupted run and returns a finished one. `kdedge eval` follows if that run has no accuracies on
the cell's test images.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdedge.errors import CellsFailed, DataError, Interrupted, explaining_writes, signum_of
from kdedge.locks import lock_file
from kdedge.messages import same_call
from kdedge.paper.suite.plan import Cell, measuring_overrides
from kdedge.paper.suite.state import Outcome, SuiteState
from kdedge.progress import Advance, progress
from kdedge.records.evaluation import EvalResult
from kdedge.records.record import read_record
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import readable_evaluation
from kdedge.runtime.process import shared_threads
from kdedge.setup.workspace import parse_device

log = logging.getLogger(__name__)

_POLL_EVERY_S = 0.1
_LAST_LINES = 12


@dataclass(frozen=True)
class _Running:
    """A cell's process.

    Attributes:
        process: the process, in its own session, so that a terminal's Ctrl-C does not reach it.
        log_start: byte at which its part of the cell's log begins.
        measures: folder of the run whose accuracy it measures; None if it trains a run.
    """

    process: subprocess.Popen[bytes]
    log_start: int
    measures: str | None


class Runner:
    """Runs the unfinished cells of a suite in processes; use it in the main thread.

    Args:
        state: the suite's cells and their outcomes.
        root: folder of all runs.
        device: value of --device; None for its default.
        n_jobs: largest number of cells that run at the same time.
        after_each: called when a cell has finished or failed.

    Raises:
        SetupError: `n_jobs` is above 1, and the device does not exist.
    """

    def __init__(
        self,
        state: SuiteState,
        *,
        root: Path,
        device: str | None,
        n_jobs: int,
        after_each: Callable[[], None],
    ) -> None:
        self._state = state
        self._cells = state.plan.cells
        self._n_jobs = n_jobs
        self._after_each = after_each
        self._options = ["--json", "--runs", str(root.absolute())]
        self._options += [] if device is None else ["--device", device]
        shares = n_jobs > 1 and parse_device(device).type == "cpu"
        self._environment = shared_threads(n_jobs) if shares else {}
        self._queue: list[Cell] = []
        self._running: dict[Cell, _Running] = {}

    @property
    def _n_done(self) -> int:
        """Number of cells that have finished or failed."""
        return len(self._cells) - len(self._queue) - len(self._running)

    def run(self) -> None:
        """Runs every unfinished cell; a failed cell does not stop the others.

        Raises:
            Interrupted: a signal ended it; the running cells have saved their state.
            ResourceError: the suite's folder may not be written.
            InUseError: another process uses the suite's folder.
        """
        folder = self._state.folder
        with explaining_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
        remedy = "Wait for that run of this suite or stop it; finished cells are kept."
        with lock_file(folder / ".lock", remedy=remedy):
            self._state.read()
            self._queue = [cell for cell in self._cells if not self._state.is_finished(cell)]
            if self._n_done:
                log.info(f"{self._n_done} of {len(self._cells)} cells are finished already.")
            what = f"suite {self._state.plan.loaded.suite.name}"
            with progress(what, len(self._cells), done=self._n_done) as advance:
                self._run(advance)

    def _run(self, advance: Advance) -> None:
        try:
            while self._running or self._queue:
                while len(self._running) < self._n_jobs:
                    finished = filter(self._state.is_finished, self._cells)
                    cell = next_cell(self._queue, self._running, finished)
                    if cell is None:
                        break
                    self._queue.remove(cell)
                    self._begin(cell)
                advance(self._n_done, "; ".join(cell.label for cell in self._running))
                time.sleep(_POLL_EVERY_S)
                for cell, running in list(self._running.items()):
                    if running.process.poll() is not None:
                        self._finish(cell, self._running.pop(cell))
        except KeyboardInterrupt as error:
            signum = signum_of(error)
            labels = " and ".join(cell.label for cell in self._running)
            self._stop(signum)
            n_finished = sum(map(self._state.is_finished, self._cells))
            raise Interrupted(
                f"Interrupted{' in ' if labels else ''}{labels};"
                f" {n_finished} of {len(self._cells)} cells are finished.\n"
                f"  {same_call()} to continue.",
                signum=signum,
            ) from error
        except BaseException:
            self._stop(signal.SIGTERM)
            raise

    def _stop(self, signum: int) -> None:
        """Sends a signal, and later signals, to all processes until they have ended."""
        processes = [running.process for running in self._running.values()]
        while any(process.poll() is None for process in processes):
            try:
                for process in processes:
                    process.send_signal(signum)
                for process in processes:
                    process.wait()
            except KeyboardInterrupt as error:
                signum = signum_of(error)

    def _begin(self, cell: Cell) -> None:
        """Starts a cell's first process, or records why it cannot start."""
        recipe = self._state.begin(cell)
        if cell.source is None:
            # The row measures this teacher, even if another one is better
            kept = ["--keep-teacher"] if cell.command == "distill" else []
            self._start(cell, [cell.command, str(recipe), "--resume", *kept])
            return
        trained = self._state.outcomes[cell.source]
        if trained.run is not None:
            self._measure(cell, trained.run)
            return
        why = f"{cell.source.label}, whose run this cell measures, did not finish."
        self._fail(cell, trained.exit_code or DataError.exit_code, why)

    def _measure(self, cell: Cell, run: str) -> None:
        """Starts `kdedge eval` of a run on the cell's test images."""
        changes = measuring_overrides(cell.loaded.recipe)
        options = [word for change in changes for word in ("--set", change)]
        self._start(cell, ["eval", run, *options], measures=run)

    def _start(self, cell: Cell, arguments: list[str], *, measures: str | None = None) -> None:
        """Starts a command of `kdedge` for a cell, with its output in the cell's files."""
        number = len(self._cells) - len(self._queue)
        log.info(f"[{number}/{len(self._cells)}] {cell.label}: {arguments[0]}")
        file, output = (self._state.file(cell, suffix) for suffix in (".log", ".output.json"))
        with explaining_writes(file), file.open("ab") as stderr, output.open("wb") as stdout:
            log_start = stderr.seek(0, os.SEEK_END)
            process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
                [sys.executable, "-m", "kdedge", *arguments, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={**os.environ, **self._environment},
                start_new_session=True,
            )
        self._running[cell] = _Running(process, log_start, measures)

    def _finish(self, cell: Cell, running: _Running) -> None:
        """Records the outcome of a cell's process, or measures the run that it trained."""
        code = running.process.returncode
        if code != 0:
            log_bytes = self._state.file(cell, ".log").read_bytes()[running.log_start :]
            # The last error message; if there is none, the last lines
            _, mark, message = f"\n{log_bytes.decode(errors='replace')}".rpartition("\nkdedge: ")
            lines = f"{mark}{message}".strip("\n").splitlines()[-_LAST_LINES:]
            killed = [f"Its process was killed by signal {-code}."] if code < 0 else []
            self._fail(cell, code, *lines, *killed)
            return
        output = self._state.file(cell, ".output.json")
        path = running.measures or read_record(dict[str, Any], output)[cell.role]["path"]
        run = RunFolder.open(Path(path))
        inputs = self._state.inputs(cell)
        if running.measures is None:
            result = readable_evaluation(run).get(cell.role)
            # An empty hash: the test images could not be read when the cell began
            if result is None or inputs.tested not in ("", result.images_hash):
                log.info(f"{path} was measured on other images; measuring it again.")
                self._measure(cell, path)
                return
        else:
            result = read_record(EvalResult, output, remedy="Run it again.")
        summary = run.read_provenance().summary
        parts = summary.rounds if summary.training is None else [summary.training]
        seconds = sum(part.seconds or 0.0 for part in parts) if parts else None
        self._state.write(cell, Outcome("finished", inputs.hash, path, result, seconds))
        figures = ", ".join(map(" ".join, zip(*result.table.lines, strict=True)))
        log.info(f"  {cell.label}: {figures}; {path}")
        self._after_each()

    def _fail(self, cell: Cell, exit_code: int, *last_lines: str) -> None:
        """Records and logs that a cell has failed."""
        self._state.write(cell, Outcome("failed", exit_code=exit_code, last_lines=last_lines))
        file = self._state.file(cell, ".log")
        shown = "\n  ".join(last_lines)
        log.warning(
            f"{cell.label} failed with exit code {exit_code}; its log is {file}.\n  {shown}"
        )
        self._after_each()


def next_cell(
    queue: Sequence[Cell], running: Collection[Cell], finished: Iterable[Cell]
) -> Cell | None:
    """The first cell of a queue that need not wait; None if all must wait.

    A cell waits for the cell whose run it measures, and for a running cell that first trains the
    same model, such as a teacher that no finished cell has.
    """
    busy = {cell.trains_first for cell in running} - {cell.trains_first for cell in finished}
    ready = (cell for cell in queue if cell.source not in (*queue, *running))
    return next((cell for cell in ready if cell.trains_first not in busy), None)


def cells_failed(state: SuiteState) -> CellsFailed | None:
    """The error that lists the failed cells; None if no cell failed."""
    outcomes = state.outcomes.items()
    failed = [(cell, outcome.exit_code) for cell, outcome in outcomes if outcome.exit_code]
    if not failed:
        return None
    lines = [f"  {x.label}: exit code {code}, {state.file(x, '.log')}" for x, code in failed]
    code = failed[0][1]
    return CellsFailed(
        f"{len(failed)} of {len(outcomes)} cells failed.\n"
        + "\n".join(lines)
        + f"\n  {same_call()} to try them again; finished cells are kept.",
        exit_code=code if code > 0 else 128 - code,  # a negative code is minus the signal
    )
