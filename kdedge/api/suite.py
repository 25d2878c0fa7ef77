"""A grid of recipes, methods and seeds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.setup.packages import need_training_packages

if TYPE_CHECKING:
    from kdedge.suite.ledger import Ledger

_LOG = logging.getLogger(__name__)


def run_suite(
    file: str | Path,
    *,
    suites: str | Path = "suites",
    jobs: int = 1,
    root: str | Path = "runs",
    device: str | None = None,
    export: bool = False,
) -> dict[str, Any]:
    """Runs a suite: recipes x methods x seeds, each cell in its own process.

    A second call continues: it finds finished runs again, resumes interrupted ones and runs failed
    cells again. After each cell the table is written to `suites/NAME`: `table.md`, `table.csv`,
    `results.json`.

    Args:
        file: the suite's YAML file.
        suites: folder of all suites.
        jobs: cells to run at the same time.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        export: export the first finished run of each row, and time all files against each other.

    Returns:
        The content of `results.json`: `lines`, one for each recipe and method, with means, spreads
        and the paper's figures; and `cells`, with each cell's status and run. With `export`, also
        `exported`: the files with accuracy, latency, size, and whether they are on the Pareto
        front.

    Raises:
        CellsFailed: some cells failed; the others are finished and in the table.
        RecipeError: the suite or one of its recipes is wrong.
        SetupError: torch or the device is missing.
        ResourceError: the suite's folder cannot be written.
    """
    from kdedge.suite.runner import check_failed
    from kdedge.suite.tables import make_lines, to_record

    ledger = open_suite(Path(file), Path(suites), Path(root))
    make_suite(ledger, Path(root), device, n_jobs=jobs)
    made = None
    if export:
        from kdedge.api.suite_export import export_students
        from kdedge.benchmarking.run import Machine

        made = export_students(ledger, Path(root), device, machine=Machine())
    check_failed(ledger)
    outcomes = ledger.outcomes()
    record = to_record(ledger.plan, outcomes, make_lines(ledger.plan, outcomes))
    return record if made is None else {**record, "exported": made.to_dict()}


def open_suite(file: Path, suites: Path, root: Path, *, is_read_only: bool = False) -> Ledger:
    """Reads a suite and plans its cells, without looking at their state."""
    need_training_packages("Training")
    from kdedge.config.suite import load_suite
    from kdedge.suite.ledger import Ledger, SuiteFolder
    from kdedge.suite.plan import make_plan

    plan = make_plan(load_suite(file))
    folder = SuiteFolder(suites / plan.loaded.suite.name)
    return Ledger(plan, folder, root.absolute(), is_read_only=is_read_only)


def look_at_suite(file: Path, suites: Path, root: Path) -> Ledger:
    """Finds the state of each cell of a suite, and runs none."""
    writes_nothing = not (root / ".cache").is_dir()
    ledger = open_suite(file, suites, root, is_read_only=writes_nothing)
    if root.is_dir() or ledger.folder.path.is_dir():
        if writes_nothing:
            _LOG.info("Reading all images once to find out which cells are finished.")
        ledger.look()
    return ledger


def make_suite(ledger: Ledger, root: Path, device: str | None, *, n_jobs: int) -> None:
    """Runs the unfinished cells of a suite, and writes its tables after each."""
    from kdedge.suite.runner import run_cells
    from kdedge.suite.tables import write_tables

    def write() -> None:
        write_tables(ledger.folder.path, ledger.plan, ledger.outcomes())

    run_cells(ledger, root=root, device=device, n_jobs=n_jobs, after_each=write)
    write()
