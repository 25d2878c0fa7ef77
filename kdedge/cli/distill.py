"""Distill the recipe's student on unlabeled images; train its teacher first if needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge import torchrun
from kdedge.cli.options import keep_teacher_option, run_options, size_option, training_options
from kdedge.cli.output import next_line, print_result
from kdedge.cli.results import run_record, run_text
from kdedge.reporting.headline import advises_against, verdict_of
from kdedge.reporting.model_records import model_records
from kdedge.runs.find import finished_runs


@click.command("distill")
@click.argument("recipe")
@size_option
@training_options("student")
@keep_teacher_option
@run_options
def command(recipe: str, root: Path, as_json: bool, **options: Any) -> None:
    """Distill the student of RECIPE from its teacher, on unlabeled images.

    RECIPE is a file, or the name of a shipped recipe. A finished teacher with the same settings and
    data is used again; otherwise it is trained first.

    To use several processes or machines: torchrun --nproc-per-node=N -m kdedge distill RECIPE.
    batch_size is the total over all processes.
    """
    from kdedge.api.train import distill

    used = finished_runs(root)
    student = distill(recipe, root=root, **options)
    if torchrun.rank() > 0:
        return
    runs = [run.folder for run in (student.teacher, student) if run is not None]
    following = next_line("export", student.path, "--cpu")
    records = model_records(student.folder)
    verdict = verdict_of(records)
    if advises_against(records):
        following = next_line("report", student.path)  # shows what it confuses
    elif verdict is not None and verdict.kind == "labels alone":
        words = ("train", student.folder.recipe, "--method", "ridge")
        following = next_line(*words, given=("root", "device"))
    text = f"{run_text(runs, used=used)}\n{following}"
    record: dict[str, Any] = {
        "teacher": run_record(runs[0]) if len(runs) > 1 else None,
        "student": run_record(student.folder),
    }
    print_result(record, as_json=as_json, text=text)
