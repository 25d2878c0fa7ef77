"""Run the whole flow on built-in data in a few minutes: teacher, student, tables, predictions."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli._options import resume_option, run_options
from kdedge.cli._output import grid_text, print_result, table
from kdedge.cli._results import run_record, run_text
from kdedge.runs.find import finished_runs


@click.command("demo")
@resume_option
@run_options
def command(resume: bool, root: Path, device: str | None, as_json: bool) -> None:
    """Run the whole flow on built-in drawings with two tiny CLIPs, without any download.

    A teacher CLIP learns prompts from 16 labeled drawings of each base class. A much smaller
    student is distilled from it on unlabeled drawings of all classes: with prompts, as in the
    paper, and by a ridge regression in one pass. Novel classes have no labels.
    """
    from kdedge.api.demo import demo

    used = finished_runs(root)
    done = demo(root=root, device=device, resume=resume)
    runs = [run.folder for run in (done.teacher, done.promptkd, done.student)]
    examples = [
        [str(image.label), ", ".join(f"{name} {score:.0f} %" for name, score in image.top)]
        for image in done.examples
    ]
    wrote = (
        [] if done.artifact is None else [f"Exported student, for a device: {done.artifact.path}"]
    )
    wrote += [] if done.page is None else [f"Report: {done.page}"]
    text = "\n".join(
        [
            f"{run_text(runs, used=used)}\n",
            grid_text(done.speed.summary),
            "paper: class texts are encoded with every batch; all others use stored class vectors.",
            *done.speed.caveats,
            "",
            table(examples, header=("test drawing", "predicted")),
            "",
            *wrote,
            f"The demo took {done.seconds:.0f} s.",
            "Next: kdedge init NAME --images DIR --classes FILE   writes a recipe for your images",
            "      kdedge distill NAME.yaml                       trains your student",
        ]
    )
    record = {
        **dict(zip(("teacher", "promptkd", "student"), map(run_record, runs), strict=True)),
        "speed": done.speed.to_dict(),
        "examples": [example.to_dict() for example in done.examples],
        "artifact": None if done.artifact is None else str(done.artifact.path),
        "report": None if done.page is None else str(done.page),
        "seconds": done.seconds,
    }
    print_result(record, as_json=as_json, text=text)
