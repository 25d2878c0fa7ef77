"""Train the recipe's teacher on labeled images and store its class vectors."""

from __future__ import annotations

from typing import Any

import click

from kdedge.api.train import Place, make_teacher
from kdedge.cli._options import (
    device_option,
    engine_option,
    options_as,
    resume_option,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result, same_options
from kdedge.cli._overrides import set_options
from kdedge.cli._results import run_record, run_text
from kdedge.config.load import load_recipe


@click.command("teach")
@click.argument("recipe")
@set_options("teacher")
@click.option(
    "--store",
    "is_stored",
    is_flag=True,
    help="Also store the teacher's features of student.views crops of each unlabeled image, for"
    " distillation. A finished teacher of RECIPE is used again.",
)
@engine_option
@resume_option
@runs_option
@device_option
@options_as(Place, "place")
@threads_option
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    is_stored: bool,
    place: Place,
    as_json: bool,
) -> None:
    """Train the teacher of RECIPE on its labeled images and store its class vectors.

    RECIPE is a file, or the name of a shipped recipe.
    """
    if place.engine != "local" and not is_stored:
        raise click.UsageError(f"--engine {place.engine} works only with --store: add --store.")
    loaded = load_recipe(recipe, overrides)
    made = make_teacher(loaded, place, is_stored=is_stored)
    if not made.is_rank0:
        return
    (run,) = made.runs
    record: dict[str, Any] = {"teacher": run_record(run)}
    stored = ""
    if made.store is not None:
        record["store"] = made.store.to_dict()
        stored = f"{made.store}\n"
    following = (
        next_line("show" if loaded.recipe.data.test is None else "eval", run.path)
        if loaded.recipe.student is None
        else next_line("distill", recipe, *same_options(overrides))
    )
    text = f"{run_text([run], used=made.used)}\n{stored}{following}"
    print_result(record, as_json=as_json, text=text)
