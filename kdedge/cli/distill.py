"""Distill the recipe's student on unlabeled images; train its teacher first if needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import (
    device_option,
    resume_option,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, print_result
from kdedge.cli._overrides import set_options, size_option
from kdedge.cli._results import run_record, run_text
from kdedge.config.load import load_recipe


@click.command("distill")
@click.argument("recipe")
@size_option
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

    To use several processes or machines: torchrun --nproc-per-node=N -m kdedge distill RECIPE.
    batch_size is the total over all processes.
    """
    from kdedge.api.train import Place, make_student

    loaded = load_recipe(recipe, overrides)
    made = make_student(loaded, Place(root, device, resume))
    if not made.is_rank0:
        return
    *teacher, student = made.runs
    following = "export" if loaded.recipe.data.test is None else "eval"
    text = f"{run_text(list(made.runs), used=made.used)}\n{next_line(following, student.path)}"
    record: dict[str, Any] = {
        "teacher": run_record(teacher[0]) if teacher else None,
        "student": run_record(student),
    }
    print_result(record, as_json=as_json, text=text)
