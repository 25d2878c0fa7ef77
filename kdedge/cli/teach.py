"""Train the recipe's teacher on labeled images and store its class vectors."""

from __future__ import annotations

from typing import Any

import click

from kdedge import torchrun
from kdedge.api.arguments import role_keys
from kdedge.cli.options import (
    SHORTHANDS,
    keep_teacher_option,
    ray_option,
    run_options,
    training_options,
)
from kdedge.cli.output import given_options, next_line, print_result
from kdedge.cli.results import run_record, run_text
from kdedge.config.load import merged
from kdedge.runs.find import finished_runs


@click.command("teach")
@click.argument("recipe")
@training_options("teacher")
@click.option(
    "--store",
    "is_stored",
    is_flag=True,
    help="Also store the teacher's features of student.views crops of each unlabeled image, for"
    " distillation. A finished teacher of RECIPE is used again.",
)
@keep_teacher_option
@ray_option
@run_options
def command(recipe: str, is_stored: bool, as_json: bool, **options: Any) -> None:
    """Train the teacher of RECIPE on its labeled images and store its class vectors.

    RECIPE is a file, or the name of a shipped recipe.
    """
    from kdedge.api.train import fill_teacher_store, teach

    of_store = {name: options.pop(name) for name in ("ray", "keep_teacher")}
    if not is_stored and any(of_store.values()):
        (flag, *_) = given_options(*of_store)
        raise click.UsageError(f"{flag} works only with --store: add --store.")
    keys = role_keys("teacher", {name: options[name] for name in SHORTHANDS})
    keys = merged(options["overrides"], keys)
    distilling = next_line(
        "distill", recipe, overrides=keys, given=("root", "device", "keep_teacher")
    )
    if is_stored:
        others = {key: options[key] for key in ("root", "device", "resume")}
        store = fill_teacher_store(recipe, overrides=keys, **of_store, **others)
        if torchrun.rank() == 0:
            print_result({"store": store.to_dict()}, as_json=as_json, text=f"{store}\n{distilling}")
        return
    used = finished_runs(options["root"])
    run = teach(recipe, **options)
    if torchrun.rank() > 0:
        return
    following = distilling
    if run.recipe.student is None:
        following = next_line("show" if run.recipe.data.test is None else "eval", run.path)
    text = f"{run_text([run.folder], used=used)}\n{following}"
    print_result({"teacher": run_record(run.folder)}, as_json=as_json, text=text)
