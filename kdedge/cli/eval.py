"""Evaluate a finished run: base, novel, harmonic mean, all, per class, calibration error."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from kdedge.api.evaluate import evaluate
from kdedge.cli.options import file_option, run_options, set_option
from kdedge.cli.output import next_line, print_result, table
from kdedge.cli.results import accuracy_text, unlabeled_text
from kdedge.files import new_file, write_json
from kdedge.records.evaluation import UnlabeledResult
from kdedge.records.tables import decimals
from kdedge.reporting.headline import advises_against, headline_of
from kdedge.reporting.model_records import model_records
from kdedge.runs.find import find_run
from kdedge.runs.results import labeled_results, with_stored


@click.command("eval")
@click.argument("run", required=False)
@set_option
@click.option("--per-class", is_flag=True, help="Also print the accuracy of each class.")
@file_option("--output", help="JSON file to write the result to. Must not exist.")
@run_options
def command(
    run: str | None, per_class: bool, output: Path | None, root: Path, as_json: bool, **options: Any
) -> None:
    """Evaluate RUN on its recipe's test images, or on unlabeled images if it has none.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished student, or for any
    finished run if it has no student. The default is the newest finished student, or any finished
    run if there is no student.

    Accuracies are top-1, in percent. Base and novel images are classified among the class names of
    their own half; `all` and single classes among all names.

    With export.calibrate in the recipe, or --set export.calibrate=true, the calibration error is
    also measured with the scores that an export has after calibration.

    If there are no test images, the command measures agreement with the teacher, mean confidence
    and how often each class is predicted, on unlabeled images. data.unlabeled.hold_out keeps some
    of them out of training.

    If the run has no evaluation yet, such as an imported run, the command writes eval.json and
    eval_details.json for `kdedge report`. It does the same with --set data.test.folder=DIR if the
    run had no test images. Existing files stay. With other keys of --set nothing is written.
    """
    folder = find_run(run, root)
    with contextlib.nullcontext() if output is None else new_file(output):
        result = evaluate(folder.path if run is None else run, root=root, **options)
        if output is not None:
            write_json(output, result.to_dict())
    if isinstance(result, UnlabeledResult):
        text = f"{folder.path}, without labels\n{unlabeled_text(result)}"
        measured = replace(model_records(folder), unlabeled=result)
        header = ["predicted", "by teacher"]
        cells = []
        for name in dict.fromkeys([*result.predicted, *result.teacher_predicted]):
            n_predicted = result.predicted.get(name, 0)
            n_by_teacher = result.teacher_predicted.get(name, 0)
            cells.append([name, str(n_predicted), str(n_by_teacher)])
    else:
        results = with_stored(folder, result)  # with other models' results on the same images
        rows = labeled_results(folder, results)
        text = f"{folder.path}, {result.n_images:,} images\n{accuracy_text(rows)}"
        stored = model_records(folder)
        own = stored.own
        measured = replace(stored, results=results)
        # The stored confusions are those of the stored predictions
        if own and (own.images_hash, own.per_class) != (result.images_hash, result.per_class):
            measured = replace(measured, details={})
        header = ["accuracy"]
        cells = [[name, decimals(value)] for name, value in result.per_class.items()]
    headline = headline_of(measured)
    if headline is not None:
        text += f"\n{headline}"
    if per_class:
        text += "\n\n" + table(cells, header=["class", *header], align="lr")
    if output is not None:
        text += f"\nWrote {output}"
    following = next_line("report", folder.path)
    if folder.role == "student" and not (folder.artifacts or advises_against(measured)):
        following = next_line("export", folder.path, "--cpu")
    text += f"\n{following}"
    print_result({"run": str(folder.path), **result.to_dict()}, as_json=as_json, text=text)
