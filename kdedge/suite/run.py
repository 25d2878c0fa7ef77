"""Runs the unfinished cells of a suite, and reports those that failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kdedge.errors import CellsFailed
from kdedge.files import explain_os_error
from kdedge.lock import locked
from kdedge.progress import progress
from kdedge.runtime.threads import shared_threads
from kdedge.setup.device import choose_device
from kdedge.suite.ledger import Ledger
from kdedge.suite.runner import Runner


def run_suite(
    ledger: Ledger,
    *,
    root: Path,
    device: str | None,
    n_jobs: int,
    after_each: Callable[[], None],
) -> None:
    """Runs every unfinished cell; a failed one does not stop the others.

    Args:
        ledger: the suite's ledger.
        root: folder of all runs.
        device: where to train, as --device takes it; None for its default.
        n_jobs: largest number of cells that run at the same time.
        after_each: called when a cell has ended, whatever its result.

    Raises:
        Interrupted: a signal ended it; the running cells have saved their state.
        ResourceError: the suite's folder may not be written.
        InUseError: another process uses it.
        SetupError: several cells are to share a device that does not exist.
    """
    folder = ledger.folder.path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    shares = n_jobs > 1 and choose_device(device).type == "cpu"
    environment = shared_threads(n_jobs) if shares else {}
    remedy = "Wait for that run of this suite or stop it; finished cells are kept."
    with locked(folder / ".lock", remedy=remedy):
        ledger.look()
        runner = Runner(
            ledger,
            ("--runs", str(root.absolute()), *(() if device is None else ("--device", device))),
            environment=environment,
            n_jobs=n_jobs,
            after_each=after_each,
        )
        what = f"suite {ledger.plan.loaded.suite.name}"
        with progress(what, len(ledger.plan.cells), done=runner.n_done) as advance:
            runner.run(advance)


def check_failed(ledger: Ledger) -> None:
    """Raises an error that lists the failed cells.

    Raises:
        CellsFailed: some did.
    """
    outcomes = ledger.outcomes()
    failed = {cell: one.failure for cell, one in outcomes.items() if one.failure is not None}
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
