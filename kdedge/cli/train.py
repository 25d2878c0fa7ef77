"""Train a baseline on the student's backbone, without a teacher."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli._options import (
    device_option,
    resume_option,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result
from kdedge.cli._overrides import set_options, warn_of_unused_optim
from kdedge.cli._results import finished_runs, run_record, run_text
from kdedge.config.load import check_paths, load_recipe
from kdedge.setup.packages import need_training_packages


@click.command("train")
@click.argument("recipe")
@click.option(
    "--method",
    metavar="NAME",
    help="Method; `kdedge methods` lists them. [default: the recipe's baseline.method]",
)
@set_options("baseline")
@resume_option
@runs_option
@device_option
@threads_option
@json_option
def command(
    recipe: str,
    method: str | None,
    overrides: tuple[str, ...],
    resume: bool,
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Train a baseline of RECIPE: a method on the student's backbone, without a teacher.

    RECIPE is a file, or the name of a shipped recipe. The baseline uses its images, split and seed;
    `kdedge methods` says which images each method is trained on.

    If the recipe's teacher has the same method, the baseline uses the teacher's settings and optim.
    Otherwise it uses the method's defaults, the learning rate, epochs and batch size that its
    authors published, and the recipe's optim for the rest. Change them with --set
    baseline.settings.n_ctx=16 and --set baseline.optim.epochs=50, or in the recipe's baseline
    section. The run's recipe.yaml holds all values.
    """
    loaded = load_recipe(recipe, overrides)
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.distributed import joined
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.baseline import train_baseline, with_baseline

    used = finished_runs(root)
    chosen = choose_device(device)
    with joined(chosen) as group:
        warn_of_unused_optim(with_baseline(loaded, method), "baseline")
        workspace = Workspace(root, chosen, group=group)
        run = train_baseline(loaded, workspace, method, resume=resume)
    if not group.is_rank0:
        return
    following = "show" if loaded.recipe.data.test is None else "eval"
    text = f"{run_text([run], used=used)}\n{next_line(following, run.path)}"
    print_result({"baseline": run_record(run)}, as_json=as_json, text=text)
