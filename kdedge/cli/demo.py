"""Run the whole flow on built-in data in about a minute: teacher, student, tables, predictions."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli.options import resume_option, run_options
from kdedge.cli.output import print_result, table, titled
from kdedge.cli.results import run_record, run_text
from kdedge.runs.find import finished_runs


@click.command("demo")
@resume_option
@run_options
def command(resume: bool, root: Path, device: str | None, as_json: bool) -> None:
    """Run the whole flow on built-in drawings with two tiny CLIPs, without any download.

    A teacher CLIP learns from 16 labeled drawings of each class. A faster student learns from
    the teacher's outputs on unlabeled drawings, is exported, timed, and tried on test drawings.
    """
    from kdedge.api.demo import demo

    used = finished_runs(root)
    results = demo(root=root, device=device, resume=resume)
    teacher = results.teacher.folder
    student = results.student.folder
    lines = ["$ kdedge distill demo", run_text([teacher, student], used=used)]
    if results.artifact is not None:
        lines += ["\n$ kdedge export", f"Wrote {results.artifact.path}, the folder for the device"]
    lines += ["\n$ kdedge bench", titled(results.speed.table), *results.speed.caveats]
    if results.page is not None:
        lines += ["\n$ kdedge report", f"Wrote {results.page}: open it in a browser"]
    examples = []
    for image in results.examples:
        predicted = ", ".join(f"{name} {score:.0f} %" for name, score in image.top)
        examples.append([str(image.label), predicted])
    lines += [
        "\nThe student's predictions, a right one, a wrong one and the least certain one:",
        table(examples, header=("test drawing", "predicted")),
        f"\nThe demo took {results.seconds:.0f} s.",
        "Next: kdedge init NAME --images DIR --classes FILE --labeled DIR --test DIR",
    ]
    record = {
        "teacher": run_record(teacher),
        "student": run_record(student),
        "speed": results.speed.to_dict(),
        "examples": [example.to_dict() for example in results.examples],
        "artifact": None if results.artifact is None else str(results.artifact.path),
        "report": None if results.page is None else str(results.page),
        "seconds": results.seconds,
    }
    print_result(record, as_json=as_json, text="\n".join(lines))
