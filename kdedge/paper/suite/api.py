"""A grid of recipes, methods and seeds, and its exported students on a Pareto front."""

from __future__ import annotations

import html
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.api.arguments import need_training_packages
from kdedge.api.export import export as export_run
from kdedge.api.run import Run, open_run
from kdedge.errors import Interrupted, KdedgeError, check_at_least
from kdedge.files import home_path
from kdedge.runs.folder import runs_folder

if TYPE_CHECKING:
    from kdedge.paper.suite.export import Exported
    from kdedge.paper.suite.state import SuiteState


def run_suite(
    file: str | Path,
    *,
    suites: str | Path = "suites",
    jobs: int = 1,
    root: str | Path | None = None,
    device: str | None = None,
    export: bool = False,
) -> SuiteResult:
    """Runs a suite: recipes x methods x seeds, each cell in its own process.

    A second call continues: it finds finished runs again, resumes interrupted ones and runs failed
    cells again. After each cell the table is written to `suites/NAME`: `table.md`, `table.csv`,
    `results.json`.

    Args:
        file: the suite's YAML file.
        suites: folder of all suites.
        jobs: cells to run at the same time.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.
        export: export the first finished run of each row, and time all files against each other.

    Returns:
        The table.

    Raises:
        CellsFailed: some cells failed; the error's `result` is the table of the finished ones.
        RecipeError: the suite or one of its recipes is wrong, or `jobs` is below 1.
        SetupError: torch or the device is missing.
        ResourceError: the suite's folder cannot be written.
    """
    check_at_least(1, jobs=jobs)
    root = runs_folder(root)
    state = open_suite(home_path(file), home_path(suites), root)
    from kdedge.paper.suite.export import export_students
    from kdedge.paper.suite.runner import Runner, cells_failed
    from kdedge.paper.suite.tables import write_tables

    def write() -> None:
        write_tables(state.folder, state.plan, state.outcomes)

    Runner(state, root=root, device=device, n_jobs=jobs, after_each=write).run()
    write()
    exported = None
    failure: KdedgeError | None = cells_failed(state)
    try:
        if export:
            exported = export_students(state, partial(export_run, root=root, device=device))
    except KdedgeError as error:
        failure = error if failure is None or isinstance(error, Interrupted) else failure
    result = SuiteResult(state, exported)
    if failure is not None:
        failure.result = result
        raise failure
    return result


class SuiteResult:
    """The table of a suite: means, spreads and the paper's figures for each recipe and method.

    Attributes:
        folder: folder that the table is written to.
        tables: a table for each recipe and one of their average; with `export`, also one of the
            files with accuracy, latency, size, and whether they are on the Pareto front.
        notes: lines that explain the figures.
        runs: the finished runs.
    """

    def __init__(self, state: SuiteState, exported: Exported | None) -> None:
        from kdedge.paper.suite.tables import make_lines, make_tables, notes, to_record

        plan = state.plan
        outcomes = state.outcomes
        lines = make_lines(plan, outcomes)
        self.folder = state.folder
        self.tables = make_tables(lines)
        self.notes = notes(plan)
        paths = [outcome.run for outcome in outcomes.values()]
        self.runs: list[Run] = [open_run(path) for path in paths if path is not None]
        self._record = to_record(plan, outcomes, lines)
        if exported is not None:
            self._record["exported"], table = exported
            self.tables.append(table)

    def to_dict(self) -> dict[str, Any]:
        """The content of `results.json`: `lines`, and `cells` with each cell's status and run.

        With `export`, also `exported`: the files.
        """
        return dict(self._record)

    def __str__(self) -> str:
        tables = [f"{table.title}\n{table}\n\n{table.caption}" for table in self.tables]
        return "\n\n".join([*map(str.strip, tables), "\n".join(self.notes)])

    def _repr_html_(self) -> str:
        tables = [f"{html.escape(table.title)}{table.as_html()}" for table in self.tables]
        return "".join([*tables, *(f"<br>{html.escape(note)}" for note in self.notes)])


def open_suite(file: Path, suites: Path, root: Path) -> SuiteState:
    """Reads a suite and plans its cells, without looking at their state."""
    need_training_packages("Training")
    from kdedge.paper.suite.plan import make_plan
    from kdedge.paper.suite.spec import load_suite
    from kdedge.paper.suite.state import SuiteState

    plan = make_plan(load_suite(file))
    return SuiteState(plan, suites / plan.loaded.suite.name, root.absolute())
