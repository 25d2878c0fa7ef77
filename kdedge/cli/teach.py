"""Train the recipe's teacher on labeled images and store its class vectors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import (
    device_option,
    resume_option,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result, same_options
from kdedge.cli._overrides import set_options, warn_of_unused_optim
from kdedge.cli._results import finished_runs, run_record, run_text
from kdedge.config.load import check_paths, load_recipe
from kdedge.setup.packages import need_training_packages


def _read_shard(
    ctx: click.Context, param: click.Parameter, text: str | None
) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", text)
    if match is None or int(match[1]) > int(match[2]):
        raise click.BadParameter(f"{text} is not I/N with I from 1 to N, such as 2/8.")
    return int(match[1]), int(match[2])


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
@click.option(
    "--shard",
    metavar="I/N",
    callback=_read_shard,
    help="With --store: compute only part I of N. Copy the parts' files into one folder.",
)
@resume_option
@runs_option
@device_option
@threads_option
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    is_stored: bool,
    shard: tuple[int, int] | None,
    resume: bool,
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Train the teacher of RECIPE on its labeled images and store its class vectors.

    RECIPE is a file, or the name of a shipped recipe.
    """
    if shard is not None and not is_stored:
        raise click.UsageError("--shard names a part of a teacher store: add --store.")
    loaded = load_recipe(recipe, overrides)
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.distributed import joined
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.distill import store_features
    from kdedge.training.teach import teach

    used = finished_runs(root)
    record: dict[str, Any] = {}
    stored = ""
    chosen = choose_device(device)
    is_given = loaded.recipe.teacher is not None and loaded.recipe.teacher.run is not None
    with joined(chosen) as group:
        if not is_given:
            warn_of_unused_optim(loaded, "teacher")
        workspace = Workspace(root, chosen, group=group)
        if is_stored:
            run, store = store_features(loaded, workspace, resume=resume, shard=shard or (1, 1))
            record = {"store": store.to_dict()}
            part = "" if shard is None else f", part {shard[0]} of {shard[1]}"
            stored = f"{store}{part}\n"
        else:
            run = teach(loaded, workspace, resume=resume)
    if not group.is_rank0:
        return
    following = (
        next_line("show" if loaded.recipe.data.test is None else "eval", run.path)
        if loaded.recipe.student is None
        else next_line("distill", recipe, *same_options(overrides))
    )
    if is_given:
        used.add(run.path.resolve())  # it may be in another folder of runs
    text = f"{run_text([run], used=used)}\n{stored}{following}"
    print_result({"teacher": run_record(run), **record}, as_json=as_json, text=text)
