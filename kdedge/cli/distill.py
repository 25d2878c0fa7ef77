"""Distill the recipe's student on unlabeled images; train its teacher first if needed."""

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


@click.command("distill")
@click.argument("recipe")
@set_options("student")
@resume_option
@runs_option
@device_option
@threads_option
@json_option
def command(
    recipe: str,
    overrides: tuple[str, ...],
    resume: bool,
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Distill the student of RECIPE from its teacher, on unlabeled images.

    RECIPE is a file, or the name of a shipped recipe. A finished teacher with the same settings and
    data is used again; otherwise it is trained first.

    For several processes or machines: torchrun --nproc-per-node=N -m kdedge distill RECIPE.
    batch_size is the total over all processes.
    """
    loaded = load_recipe(recipe, overrides)
    check_paths(loaded)
    need_training_packages("Training")
    from kdedge.distributed import joined
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.distill import distill

    used = finished_runs(root)
    chosen = choose_device(device)
    is_given = loaded.recipe.teacher is not None and loaded.recipe.teacher.run is not None
    with joined(chosen) as group:
        warn_of_unused_optim(loaded, *(() if is_given else ("teacher",)), "student")
        teacher, student = distill(loaded, Workspace(root, chosen, group=group), resume=resume)
    if not group.is_rank0:
        return
    if is_given:
        used.add(teacher.path.resolve())  # it may be in another folder of runs
    following = "export" if loaded.recipe.data.test is None else "eval"
    text = f"{run_text([teacher, student], used=used)}\n{next_line(following, student.path)}"
    record = {"teacher": run_record(teacher), "student": run_record(student)}
    print_result(record, as_json=as_json, text=text)
