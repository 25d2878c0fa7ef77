"""Train any prompt method on the student's backbone, to compare the student with."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli._options import device_option, need_training_packages, resume_option, runs_option
from kdedge.cli._output import json_option, next_line, print_result, set_option
from kdedge.cli._overrides import warn_of_unused_optim
from kdedge.cli._results import finished_runs, run_record, run_text
from kdedge.config.load import check_paths, load_recipe


@click.command("train")
@click.argument("recipe")
@click.option(
    "--method",
    metavar="NAME",
    help="The method; `kdedge methods` lists them. [default: the recipe's baseline.method]",
)
@set_option
@resume_option
@runs_option
@device_option
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

    RECIPE is a file, or the name of a shipped recipe. Images, split and seed are those of its
    teacher and student; `kdedge methods` says which images a method learns from.

    Where the recipe's teacher is of the same method, its settings and optimization hold for the
    baseline too. Else the method's defaults hold, with the learning rate, epochs and batch size
    that its authors published, and the recipe's optim for the rest. Change them with --set
    baseline.settings.n_ctx=16 and --set baseline.optim.epochs=50, or in a baseline section of the
    recipe. The run's recipe.yaml says them all.
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
