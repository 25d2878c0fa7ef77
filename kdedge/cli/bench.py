"""Measure speed, size and work of a run's models and of an artifact's files."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from kdedge.api.bench import AGAINST, Gathered, Timing, read_baseline
from kdedge.benchmarking.compare import check_comparable, check_regressions
from kdedge.benchmarking.device import device_sheet
from kdedge.benchmarking.grid import Grid
from kdedge.benchmarking.run import Machine
from kdedge.benchmarking.tables import (
    as_csv,
    as_markdown,
    doubts,
    fitted,
    make_grids,
    notes,
    problems,
    summary,
)
from kdedge.cli._options import (
    calls_option,
    check_new_file,
    device_option,
    options_as,
    runs_option,
    threads_value_option,
    use_threads,
)
from kdedge.cli._output import FiniteRange, next_line, print_result, table
from kdedge.errors import ResourceError
from kdedge.runtime.contention import QuietWait
from kdedge.runtime.threads import given_number
from kdedge.speed_results import MOST_OTHERS_PERCENT, SpeedResult

log = logging.getLogger(__name__)

_WIDTH = 80  # columns of the text below a table
_FORMATS = ("text", "md", "csv", "json")


def _numbers(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Batch sizes from `1,8,32`."""
    del ctx, parameter
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 100_000 for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of batch sizes. Write it as 1,8,32.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _percent(ctx: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A percentage from `5%` or `5`."""
    del ctx, parameter
    if value is None:
        return None
    try:
        number = float(value.strip().removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0 <= number < 1000:
        raise click.BadParameter(f"{value!r} is not a percentage. Write it as 5%.")
    return number


@dataclass(frozen=True)
class _Models:
    """The models to measure.

    Attributes:
        sources: runs, artifacts and files.
        against: methods to compare a run with, as typed.
        root: folder of all runs.
        device: torch's, for a run's models.
        threads: of the CPU.
    """

    sources: tuple[str, ...]
    against: str
    root: Path
    device: str | None
    threads: int | None


@dataclass(frozen=True)
class _Comparison:
    """Earlier measurements to compare with, and how much slower a median may be."""

    baseline: Path | None
    max_regress: float | None


@dataclass(frozen=True)
class _Shown:
    """Where the measurements go and how they are printed.

    Attributes:
        kind: one of `_FORMATS`.
        is_whole: print every table of the text.
        output: a new file for the measurements; None for the next one of the first run.
    """

    kind: str
    is_whole: bool
    output: Path | None


@click.command("bench")
@click.argument("sources", metavar="[RUN|ARTIFACT|FILE]...", nargs=-1)
@click.option(
    "--against",
    default=",".join(AGAINST),
    show_default=True,
    metavar="METHODS",
    help="Methods on the student's backbone to compare a run with, or none.",
)
@click.option(
    "--batch",
    "batches",
    default="1,8,32,100",
    show_default=True,
    callback=_numbers,
    metavar="N,N",
    help="Images per call.",
)
@click.option(
    "--seconds",
    type=FiniteRange(min=0.01),
    default=2.0,
    show_default=True,
    help="Shortest measurement of each model at each batch size.",
)
@calls_option
@click.option(
    "--slowest",
    type=FiniteRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Skip batch sizes at which one call of a model would take longer.",
)
@click.option(
    "--wait-quiet",
    "wait_quiet",
    type=FiniteRange(min=0.5),
    metavar="SECONDS",
    help="Wait until other processes leave the cores, for at most this time in total. Times that"
    " they disturb are marked with ! and not ranked.",
)
@threads_value_option
@click.option(
    "--format",
    "kind",
    type=click.Choice(_FORMATS),
    default="text",
    show_default=True,
    help="json has every timed call; it is what --output writes and --baseline reads.",
)
@click.option(
    "--all",
    "is_whole",
    is_flag=True,
    help="With text: print every table (sizes, percentiles, FPS by batch, accuracies).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the measurements here as JSON. Must not exist. [default: bench/NN.json in the"
    " first run]",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Earlier measurements (JSON) to compare with.",
)
@click.option(
    "--max-regress",
    callback=_percent,
    metavar="PERCENT",
    help="Exit with code 6 if a median is this much above --baseline's.  [default: 5%]",
)
@runs_option
@device_option
@options_as(_Models, "models")
@options_as(_Shown, "shown")
@options_as(Timing, "timing")
@options_as(_Comparison, "comparison")
@click.pass_obj
def command(
    machine: Machine | None,
    models: _Models,
    timing: Timing,
    comparison: _Comparison,
    shown: _Shown,
    wait_quiet: float | None,
) -> None:
    """Measure models against each other: work, latency, FPS, memory, accuracy.

    A RUN is measured with its teacher, plain CLIP, the methods of --against and the files of its
    newest artifact. Of an ARTIFACT, every file that this machine can run is measured. A FILE of an
    artifact is measured alone. Artifacts and their files need no torch. The default is the newest
    finished student, or any finished run if there is no student.

    Speed and work depend on a method's architecture only. Accuracies come from finished runs.
    """
    baseline = comparison.baseline
    threads = given_number() if models.threads is None else models.threads
    if comparison.max_regress is not None and baseline is None:
        raise click.UsageError("--max-regress needs --baseline FILE to compare with.")
    before = None if baseline is None else read_baseline(baseline)
    if before is not None:
        check_comparable(before, device=device_sheet(), n_threads=threads, where=str(baseline))
    check_new_file(shown.output)
    wait = QuietWait(wait_quiet or 0.0, most_percent=MOST_OTHERS_PERCENT)
    wait()  # the load of the machine decides how threads wait
    use_threads(threads)
    names = [] if models.against == "none" else models.against.split(",")
    gathered = Gathered(
        models.root,
        against=[name.strip() for name in names],
        device=models.device,
        n_threads=threads,
    )
    for source in models.sources or (None,):
        gathered.add(source)

    def show(result: SpeedResult) -> None:
        try:
            written = gathered.write(result, shown.output)
        except ResourceError:
            _print(result, shown, [])  # the file failed, but not the measurement
            raise
        lines = [f"Wrote {written}"] if written is not None else []
        if gathered.run is not None:
            lines.append(next_line("report", gathered.run))
        _print(result, shown, lines)

    result = gathered.measure(
        timing,
        shlex.join(["kdedge", *sys.argv[1:]]),
        machine=replace(machine or Machine(), wait=wait),
        when_interrupted=show,
    )
    show(result)
    if before is not None:
        limit = 5.0 if comparison.max_regress is None else comparison.max_regress
        for line in check_regressions(result, before, max_percent=limit, where=str(baseline)):
            log.info("%s", line)


def _print(result: SpeedResult, shown: _Shown, lines: Sequence[str]) -> None:
    if shown.kind == "json":
        print_result(result, as_json=True)
    elif shown.kind == "text":
        click.echo("\n\n".join([*_blocks(result, shown), "\n".join(lines)]).rstrip())
        return
    else:
        click.echo(as_markdown(result) if shown.kind == "md" else as_csv(result))
    for line in lines:
        log.info("%s", line)


def _blocks(result: SpeedResult, shown: _Shown) -> list[str]:
    """The first table with its caveats, or all tables and notes."""
    if shown.is_whole:
        blocks = [f"{grid.title}\n{_as_text(grid)}" for grid in make_grids(result)]
        return [*blocks, "\n".join(notes(result))]
    grid = summary(result)
    at_all = {name: why for name, why in result.left_out.items() if ", batch " not in name}
    n_less = len(result.left_out) - len(at_all)
    more = "--all: sizes, percentiles, FPS by batch, published figures"
    more += f", {n_less} models and batches left out" if n_less else ""
    said = [*doubts(result), *problems(result, at_all), more]
    return [f"{_wrapped(grid.title)}\n{_as_text(grid)}", "\n".join(map(_wrapped, said))]


def _wrapped(text: str) -> str:
    """Wraps a paragraph without breaking paths and names."""
    return textwrap.fill(
        text, _WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
    )


def _as_text(grid: Grid) -> str:
    """Fits a table to the terminal; without one, each name is on one line."""
    rows = grid.rows
    if sys.stdout is not None and sys.stdout.isatty():
        rows = fitted(grid, shutil.get_terminal_size().columns)
    return table(rows, header=grid.header, align="l" + "r" * (len(grid.header) - 1))
