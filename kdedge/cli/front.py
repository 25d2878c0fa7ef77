"""Compare the exported students of a suite by accuracy and latency; say which to deploy."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdedge.api.front import (
    ExportWish,
    FrontTiming,
    Measuring,
    Places,
    check_front,
    front_folder,
    make_suites_front,
    open_front,
)
from kdedge.benchmarking.run import Machine
from kdedge.cli._options import (
    calls_option,
    device_option,
    options_as,
    runs_option,
    suites_option,
    threads_value_option,
    use_threads,
)
from kdedge.cli._output import (
    FiniteRange,
    json_option,
    next_line,
    print_result,
    table,
)
from kdedge.fronts.limits import Limits

if TYPE_CHECKING:
    from kdedge.fronts.front import Front


@click.command("front")
@click.argument(
    "file", metavar="SUITE", type=click.Path(path_type=Path, exists=True, dir_okay=False)
)
@click.option(
    "--max-ms",
    type=FiniteRange(min=0, min_open=True),
    metavar="MS",
    help="Deploy the most accurate file within this median latency at batch 1.",
)
@click.option(
    "--min-accuracy",
    type=FiniteRange(min=0, max=100),
    metavar="PERCENT",
    help="Deploy the fastest file with at least this accuracy.",
)
@click.option("--fp16", is_flag=True, help="Export FP16 files.")
@click.option("--int8", is_flag=True, help="Export INT8 files, and FP16 ones to compare them with.")
@click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override a key of the recipe for the export, as in --set export.head=argmax. Can be"
    " repeated.",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0.01),
    default=FrontTiming.seconds,
    show_default=True,
    help="Shortest measurement of each file.",
)
@calls_option
@click.option(
    "--wait-quiet",
    "wait_quiet",
    type=FiniteRange(min=0.5),
    metavar="SECONDS",
    help="Before measuring, wait until other processes leave the cores, for at most this time in"
    " total. Times that they disturb are marked with ! and not ranked.",
)
@threads_value_option
@click.option(
    "--jobs",
    "n_jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Students to train at the same time.",
)
@click.option(
    "--fronts",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("fronts"),
    show_default=True,
    help="Folder of all fronts.",
)
@suites_option
@runs_option
@device_option
@json_option
@click.pass_obj
@options_as(Limits, "limits")
@options_as(ExportWish, "wish")
@options_as(FrontTiming, "timing")
@options_as(Places, "places")
def command(
    machine: Machine | None,
    file: Path,
    limits: Limits,
    wish: ExportWish,
    timing: FrontTiming,
    places: Places,
    n_jobs: int,
    as_json: bool,
) -> None:
    """Compare the exported students of SUITE, and say which one to deploy.

    SUITE is a suite's file with one recipe. Its missing runs are trained as by `kdedge suite`. The
    first seed of each row is exported as by `kdedge export`; the newest artifact of a run is used
    if it is the same. All files are timed against each other on this machine.

    fronts/NAME gets front.json, front.md, front.csv, and plots of accuracy against latency, size
    and GFLOPs with the Pareto front. A second call continues an interrupted one, and measures
    again.

    A file that missed its recipe's gates is marked and never named for deployment. If no file is
    within --max-ms and --min-accuracy, the exit code is 6 and the nearest file is named.
    """
    use_threads(timing.threads)
    ledger = open_front(file, places)
    command_line = shlex.join(["kdedge", *sys.argv[1:]])
    measuring = Measuring(timing, machine or Machine(), command_line)
    made = make_suites_front(ledger, places, wish, measuring, limits=limits, n_jobs=n_jobs)
    print_result(made, as_json=as_json, text=_as_text(made, front_folder(ledger, places)))
    check_front(made, ledger)


def _as_text(made: Front, folder: Path) -> str:
    header, rows = made.table()
    lines = [
        table(rows, header=header, align="ll" + "r" * (len(header) - 2)),
        "",
        made.caption,
        *made.notes,
        f"Wrote {folder} (front.json, front.md, front.csv, plots)",
        made.answer,
    ]
    chosen = made.chosen
    if chosen is not None:
        options = ("--precision", str(chosen.precision))
        lines.append(next_line("predict", str(chosen.artifact), "IMAGE", *options))
    return "\n".join(lines)
