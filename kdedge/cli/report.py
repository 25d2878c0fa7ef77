"""Write one HTML page about runs: verdict, accuracies, images, the file to ship."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli.options import path_option, runs_option
from kdedge.cli.output import json_option, next_line, print_result


@click.command("report")
@click.argument("runs", metavar="[RUN]...", nargs=-1)
@path_option(
    "--output", help="Folder to write. Must not exist. [default: report/NN in the first run]"
)
@runs_option
@json_option
def command(runs: tuple[str, ...], output: Path | None, root: Path, as_json: bool) -> None:
    """Write one HTML page about RUNs.

    It says whether to use the model, and shows its accuracy by class, confusions, twelve images,
    and which file to put on the device. Details are folded. Everything comes from the records in
    the run folders: no model is loaded, and the page needs no network.

    The default RUN is the newest finished student, or any finished run if there is no student.
    """
    from kdedge.api.report import write_page
    from kdedge.reporting.headline import advises_against, conclusion_of

    page, shown = write_page(runs, output, root)
    records = next((one for one in shown if one.run.role == "student"), shown[0])
    student = records.run
    artifact = records.artifact
    following = ["show", str(student.path)]
    is_out = advises_against(records)
    if artifact is not None and not is_out:
        following = ["predict", str(artifact.path), "IMAGES"]
    # If a record is missing, the next command is the one that writes it
    missing = [one for one in records.missing.values() if one[0] != "export" or not is_out]
    following = next(iter(missing), following)
    text = "\n".join([f"Wrote {page}", *conclusion_of(records), next_line(*following)])
    record = {
        "runs": [str(one.run.path) for one in shown],
        "folder": str(page.parent),
        "page": str(page),
    }
    print_result(record, as_json=as_json, text=text)
