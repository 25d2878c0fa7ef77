"""Run a grid of recipes, methods and seeds into one table, beside the paper's figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from kdedge.cli._options import device_option, need_training_packages, runs_option
from kdedge.cli._output import json_option, next_line, print_result, table

if TYPE_CHECKING:
    from kdedge.suite.plan import Plan
    from kdedge.suite.records import Records


@click.command("suite")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--suites",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("suites"),
    show_default=True,
    help="Folder of all suites.",
)
@click.option(
    "--jobs",
    "n_jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Run up to N cells at the same time; on a CPU they share its cores (OMP_NUM_THREADS).",
)
@click.option("--dry-run", is_flag=True, help="List the cells and what is left; run nothing.")
@runs_option
@device_option
@json_option
def command(
    file: Path,
    suites: Path,
    n_jobs: int,
    dry_run: bool,
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Run the suite of FILE: recipes x methods x seeds, each cell in a process of its own.

    A second call goes on with what is missing: finished cells are kept while what their recipe says
    is unchanged, interrupted ones go on where they stopped, failed ones are tried again. The table
    is written after each cell into suites/NAME: table.md, table.csv, results.json.

    Cells that need the same teacher wait until one of them has trained it, however many may run. A
    row with trained_on is trained on that recipe alone and measured on the others, as `kdedge eval`
    with their classes and test images does.

    A cell that fails keeps no other from running; the exit code is that of the first that did.
    """
    need_training_packages("Training")
    from kdedge.config.suite import load_suite
    from kdedge.suite.plan import make_plan
    from kdedge.suite.records import Records
    from kdedge.suite.run import check_failed, run_suite
    from kdedge.suite.tables import write_tables

    plan = make_plan(load_suite(file))
    records = Records(suites / plan.loaded.suite.name)
    if dry_run:
        _list_cells(plan, records, as_json=as_json)
        return
    run_suite(
        plan,
        records,
        root=root,
        device=device,
        n_jobs=n_jobs,
        after_each=lambda: write_tables(plan, records),
    )
    write_tables(plan, records)
    _print(plan, records, as_json=as_json)
    check_failed(plan, records)


def _print(plan: Plan, records: Records, *, as_json: bool) -> None:
    from kdedge.suite.tables import make_grids, make_lines, notes, to_record

    lines = make_lines(plan, records)
    blocks = []
    for grid in make_grids(plan, lines):
        align = "l" + "r" * (len(grid.header) - 1)
        blocks.append(f"{grid.title}\n{table(grid.rows, header=grid.header, align=align)}")
    files = "table.md, table.csv, results.json"
    ending = [*notes(plan, lines), f"Wrote {records.folder} ({files})"]
    runs = [record.run for record in map(records.read, plan.cells) if record and record.run]
    if runs:
        ending.append(next_line("show", runs[0]))
    text = "\n\n".join([*blocks, "\n".join(ending)])
    print_result(to_record(plan, records, lines), as_json=as_json, text=text)


def _list_cells(plan: Plan, records: Records, *, as_json: bool) -> None:
    states = [(cell, records.state(cell)) for cell in plan.cells]
    left = sum(state != "finished" for _, state in states)
    rows = [[cell.recipe, cell.row, str(cell.seed), state] for cell, state in states]
    listing = table(rows, header=["recipe", "method", "seed", "state"], align="llrl")
    ending = f"{left} of {len(rows)} cells are left.\n{_same_command(plan)}"
    record = {
        "suite": plan.loaded.suite.name,
        "left": left,
        "cells": [
            {
                "recipe": cell.recipe,
                "row": cell.row,
                "seed": cell.seed,
                "state": state,
                "arguments": cell.arguments,
            }
            for cell, state in states
        ],
    }
    print_result(record, as_json=as_json, text=f"{listing}\n{ending}")


def _same_command(plan: Plan) -> str:
    """This command without --dry-run."""
    context = click.get_current_context()
    known = {"suites": "--suites", "n_jobs": "--jobs", "root": "--runs", "device": "--device"}
    options = [
        word
        for name, option in known.items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for word in (option, str(context.params[name]))
    ]
    return next_line("suite", plan.loaded.path, *options)
