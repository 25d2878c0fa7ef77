"""Train a baseline on the student's backbone, without a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge import torchrun
from kdedge.cli.options import run_options, training_options
from kdedge.cli.output import next_line, print_result
from kdedge.cli.results import run_record, run_text
from kdedge.reporting.run_records import run_has_class_vectors
from kdedge.runs.find import finished_runs


@click.command("train")
@click.argument("recipe")
@click.option(
    "--method",
    metavar="NAME",
    help="Method; `kdedge methods` lists them. [default: the recipe's baseline.method]",
)
@training_options("baseline")
@run_options
def command(recipe: str, root: Path, as_json: bool, **options: Any) -> None:
    """Train a baseline of RECIPE: a method on the student's backbone, without a teacher.

    RECIPE is a file, or the name of a shipped recipe. The baseline uses its images, split and seed;
    `kdedge methods` says which images each method is trained on.

    If the recipe's teacher has the same method, the baseline uses the teacher's settings and optim.
    Otherwise it uses the method's defaults, the learning rate, epochs and batch size that its
    authors published, and the recipe's optim for the rest. Change them with --set
    baseline.settings.n_ctx=16 and --set baseline.optim.epochs=50, or in the recipe's baseline
    section, which is used if it is for the same method. The run's recipe.yaml holds all values.
    """
    from kdedge.api.train import train

    used = finished_runs(root)
    run = train(recipe, root=root, **options)
    if torchrun.rank() > 0:
        return
    following = ["show", str(run.path)]
    if run_has_class_vectors(run.folder):
        following = ["export", str(run.path), "--cpu"]
    text = f"{run_text([run.folder], used=used)}\n{next_line(*following)}"
    print_result({"baseline": run_record(run.folder)}, as_json=as_json, text=text)
