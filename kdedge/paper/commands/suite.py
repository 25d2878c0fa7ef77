"""Run a grid of recipes, methods and seeds into one table, next to the paper's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdedge.cli.options import count_option, folder_option, run_options
from kdedge.cli.output import next_line, print_result, show_result, table
from kdedge.paper.suite.api import open_suite, run_suite

if TYPE_CHECKING:
    from kdedge.paper.suite.api import SuiteResult
    from kdedge.paper.suite.state import SuiteState


@click.command("suite")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@folder_option("--suites", default=Path("suites"), help="Folder of all suites.")
@count_option(
    "--jobs",
    default=1,
    help="Cells to run at the same time. On a CPU they share its cores: --threads is per cell.",
)
@click.option("--dry-run", is_flag=True, help="List the cells and their state; run nothing.")
@click.option(
    "--export",
    is_flag=True,
    help="Export the first finished run of each row, time all files against each other, and mark"
    " the Pareto front of accuracy and latency.",
)
@run_options
def command(
    file: Path, suites: Path, root: Path, dry_run: bool, as_json: bool, **options: Any
) -> None:
    """Run the suite of FILE: recipes x methods x seeds, each cell in its own process.

    A second call continues: it keeps finished runs, resumes interrupted ones and runs failed cells
    again. A run is trained again if its recipe, its row or its images have changed, and only
    evaluated again if just the test images have.

    After each cell the table is written to suites/NAME: table.md, table.csv, results.json.

    Cells that share a teacher wait until the first of them has finished. A row with trained_on is
    trained on that recipe only, and evaluated on the suite's recipes.

    With --export, files are made as by `kdedge export` with the keys of each recipe; a run's newest
    artifact is used if it has one. Files that missed their gates, and times that other processes
    disturbed, are marked with ! and not ranked. suites/NAME gets exported.md and exported.json.

    A failed cell does not stop the others. The first failed cell gives the exit code.
    """
    if dry_run:
        _list_cells(open_suite(file, suites, root), as_json=as_json)
        return
    show_result(
        lambda: run_suite(file, suites=suites, root=root, **options),
        lambda result: _print(result, as_json=as_json),
    )


def _print(result: SuiteResult, *, as_json: bool) -> None:
    more = ", exported.md, exported.json" if "exported" in result.to_dict() else ""
    wrote = f"Wrote {result.folder} (table.md, table.csv, results.json{more})"
    following = [next_line("show", run.path) for run in result.runs[:1]]
    print_result(result, as_json=as_json, text="\n".join([f"{result}", wrote, *following]))


def _list_cells(state: SuiteState, *, as_json: bool) -> None:
    from kdedge.paper.suite.tables import cell_record

    state.read()
    cells = [cell_record(cell, outcome) for cell, outcome in state.outcomes.items()]
    left = sum(cell["status"] != "finished" for cell in cells)
    keys = ("recipe", "row", "seed", "status")
    rows = [[str(cell[key]) for key in keys] for cell in cells]
    listing = table(rows, header=["recipe", "method", "seed", "state"], align="llrl")
    # Without --dry-run
    again = ("suites", "jobs", "root", "device", "export")
    following = next_line("suite", state.plan.loaded.path, given=again)
    record = {"suite": state.plan.loaded.suite.name, "left": left, "cells": cells}
    text = f"{listing}\n{left} of {len(cells)} cells are left.\n{following}"
    print_result(record, as_json=as_json, text=text)
