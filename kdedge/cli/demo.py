"""Run the whole flow on built-in data in a few minutes: teacher, student, tables, predictions."""

from __future__ import annotations

import time
from pathlib import Path

import click

from kdedge.benchmarking.timing import TimingPlan
from kdedge.cli._options import (
    device_option,
    resume_option,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, percent, print_result, table
from kdedge.cli._results import finished_runs, run_record, run_text
from kdedge.config.load import load_recipe
from kdedge.setup.packages import need_training_packages

_AGAINST = ("coop", "cocoop", "promptsrc")
_QUICK = TimingPlan(seconds=0.1, n_calls=5, most_seconds=1.0)


@click.command("demo")
@resume_option
@runs_option
@device_option
@threads_option
@json_option
def command(resume: bool, root: Path, device: str | None, as_json: bool) -> None:
    """Run the whole flow on built-in drawings with two tiny CLIPs, without any download.

    A teacher CLIP learns prompts from 16 labeled drawings of each base class. A much smaller
    student is distilled from it on unlabeled drawings of all classes. Novel classes have no labels.
    """
    need_training_packages("The demo")
    from kdedge.benchmarking.run import run_bench
    from kdedge.benchmarking.run_subjects import run_subjects
    from kdedge.benchmarking.tables import summary
    from kdedge.runs.evaluate import predict_examples
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace
    from kdedge.training.distill import distill

    began = time.monotonic()
    loaded = load_recipe("demo")
    workspace = Workspace(root, choose_device(device))
    used = finished_runs(root)
    teacher, student = distill(loaded, workspace, resume=resume)
    predictions = predict_examples(student, workspace)
    subjects, left_out = run_subjects(student, workspace, against=_AGAINST)
    speed = run_bench(
        subjects, plan=_QUICK, batches=(1, 32), n_threads=None, left_out=left_out, command="demo"
    )
    seconds = time.monotonic() - began
    rows = [
        [p.key, p.label, *(f"{name} {percent(score)}" for name, score in p.top)]
        for p in predictions
    ]
    grid = summary(speed)
    text = (
        f"{run_text([teacher, student], used=used)}\n\n"
        "Predictions of the student on test drawings, softmax in percent:\n"
        f"{table(rows, header=['drawing', 'is', 'first', 'second', 'third'])}\n\n"
        f"{grid.title}:\n"
        f"{table(grid.rows, header=grid.header, align='l' + 'r' * (len(grid.header) - 1))}\n"
        "paper: class texts are encoded with every batch; all others use stored class vectors.\n\n"
        f"The demo took {seconds:.0f} s.\n"
        "Next: kdedge init NAME --images DIR --classes FILE writes a recipe for your own images"
    )
    record = {
        "teacher": run_record(teacher),
        "student": run_record(student),
        "predictions": [prediction.to_dict() for prediction in predictions],
        "speed": speed.to_dict(),
        "seconds": seconds,
    }
    print_result(record, as_json=as_json, text=text)
