"""Measure speed, size and work of a run's models and of an artifact's files."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import click

from kdedge.api.bench import AGAINST, bench
from kdedge.benchmarking.tables import as_markdown, make_tables, notes
from kdedge.cli.options import device_option, file_option, runs_option, threads_option
from kdedge.cli.output import next_line, print_result, show_result, titled
from kdedge.records.speed import SpeedResult
from kdedge.runs.find import find_run, named_artifact
from kdedge.runtime.artifact import model_file_at

log = logging.getLogger(__name__)


def _batch_sizes(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Parses batch sizes such as `1,8,32`."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 100_000 for part in parts):
        raise click.BadParameter(f"{value!r} is not a list of batch sizes. Write it as 1,8,32.")
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command("bench", context_settings={"show_default": True})
@click.argument("sources", metavar="[RUN|ARTIFACT|FILE]...", nargs=-1)
@click.option(
    "--against",
    default=",".join(AGAINST),
    metavar="METHODS",
    help="Methods on the student's backbone to compare a run with, or none.",
)
@click.option(
    "--batch",
    "batches",
    default="1,8,32,100",
    callback=_batch_sizes,
    metavar="N,N",
    help="Images per call.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01),
    default=2.0,
    help="Shortest measurement of each model at each batch size.",
)
@click.option(
    "--calls",
    type=click.IntRange(min=3),
    default=20,
    help="Smallest number of calls; as few as 3 if more would take over 10 times --seconds.",
)
@click.option(
    "--longest-call",
    type=click.FloatRange(min=0.1),
    default=10.0,
    metavar="SECONDS",
    help="Skip batch sizes at which one call of a model would take longer.",
)
@threads_option()
@click.option(
    "--format",
    "kind",
    type=click.Choice(("text", "md", "json")),
    default="text",
    help="json has every timed call; it is what --output writes.",
)
@click.option(
    "--all",
    "is_whole",
    is_flag=True,
    help="With text: print every table (sizes, percentiles, FPS by batch, accuracies).",
)
@file_option(
    "--output",
    help="Write the measurements here as JSON. Must not exist. [default: bench/NN.json in the"
    " first run]",
)
@runs_option
@device_option
def command(
    sources: tuple[str, ...], against: str, root: Path, kind: str, is_whole: bool, **options: Any
) -> None:
    """Measure models against each other: work, latency, FPS, memory, accuracy.

    A RUN is measured with its teacher, plain CLIP, the methods of --against and the files of its
    newest artifact. Of an ARTIFACT, every file that this machine can run is measured. A FILE of an
    artifact is measured alone. Artifacts and their files need no torch. The default is the newest
    finished student, or any finished run if there is no student.

    Speed and work depend on a method's architecture only. Accuracies come from finished runs.
    """
    methods = [] if against == "none" else against.split(",")
    options["against"] = [name.strip() for name in methods]
    # Found before they are measured: meanwhile, another run may finish
    runs = [
        find_run(name, root)
        for name in sources or (None,)
        if not (named_artifact(name, root) or model_file_at(name))
    ]
    measured = sources or [run.path for run in runs]
    show_result(
        lambda: bench(*measured, root=root, **options),
        lambda result: _print(result, kind, is_whole=is_whole),
    )
    if runs:
        log.info("%s", next_line("report", runs[0].path))


def _print(result: SpeedResult, kind: str, *, is_whole: bool) -> None:
    """Prints the result as JSON, Markdown, all tables, or the first table with its caveats."""
    if kind == "json":
        print_result(result, as_json=True)
        return
    if kind == "md":
        click.echo(as_markdown(result))
        return
    if is_whole:
        blocks = [*map(titled, make_tables(result)), "\n".join(notes(result))]
    else:
        models = {name: why for name, why in result.left_out.items() if ", batch " not in name}
        n_left_out = len(result.left_out) - len(models)
        more = "--all: sizes, percentiles, FPS by batch"
        if n_left_out:
            more += f", {n_left_out} models and batches left out"
        captions = [*result.caveats, *replace(result, left_out=models).problems, more]
        # Wrapped to 80 columns, without breaking paths and names
        wrap = partial(fill, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
        table = replace(result.table, title=wrap(result.table.title, 80))
        blocks = [titled(table), "\n".join(wrap(text, 80) for text in captions)]
    click.echo("\n\n".join(blocks).rstrip())
