"""Evaluate a finished run: base, novel, harmonic mean, all, per class, calibration error."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from kdedge._files import write_json
from kdedge.cli._options import (
    check_new_file,
    device_option,
    need_training_packages,
    runs_option,
    threads_option,
)
from kdedge.cli._output import json_option, next_line, percent, print_result, set_option, table
from kdedge.cli._results import accuracy_table
from kdedge.errors import ResourceError
from kdedge.runs.find import find_run
from kdedge.runs.results import add_evaluation, run_label

log = logging.getLogger(__name__)


@click.command("eval")
@click.argument("run", required=False)
@set_option
@click.option("--per-class", is_flag=True, help="Also print the accuracy of each class.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="JSON file to write the result to. Must not exist.",
)
@runs_option
@device_option
@threads_option
@json_option
def command(
    run: str | None,
    overrides: tuple[str, ...],
    per_class: bool,
    output: Path | None,
    root: Path,
    device: str | None,
    as_json: bool,
) -> None:
    """Evaluate RUN on the test images of its recipe.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished run. The default is the
    newest finished student, or any finished run if there is no student.

    Accuracies are top-1, in percent. Base and novel images compete among the names of their own
    half; `all` and single classes among all names.

    A run without an evaluation, such as an imported one, gets eval.json and eval_details.json for
    `kdedge report`. Existing files stay; with --set nothing is added.
    """
    need_training_packages("Measuring accuracy")
    from kdedge.runs.evaluate import evaluate_run
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    check_new_file(output)
    found = find_run(run, root)
    workspace = Workspace(root, choose_device(device))
    result, details = evaluate_run(found, workspace, overrides=overrides)
    text = f"{found.path}, {result.n_images:,} images\n" + accuracy_table(
        [(run_label(found), result)]
    )
    if per_class:
        rows = [[name, percent(value)] for name, value in result.per_class.items()]
        text += "\n\n" + table(rows, header=["class", "accuracy"], align="lr")
    written: list[Path] = []
    if not overrides:
        try:
            written = add_evaluation(found, result, details)
        except ResourceError as error:  # the result is printed all the same
            log.warning("%s", error)
    if output is not None:
        write_json(output, result.to_dict())
        written.append(output)
    text += "".join(f"\nWrote {path}" for path in written)
    text += f"\n{next_line('show', found.path)}"
    print_result({"run": str(found.path), **result.to_dict()}, as_json=as_json, text=text)
