"""Write one HTML file about runs: tables, plots, worst images, provenance."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from kdedge.cli._options import runs_option
from kdedge.cli._output import json_option, next_line, print_result

log = logging.getLogger(__name__)


@click.command("report")
@click.argument("sources", metavar="[RUN]...", nargs=-1)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write. Must not exist. [default: report/NN in the first run]",
)
@runs_option
@json_option
def command(sources: tuple[str, ...], output: Path | None, root: Path, as_json: bool) -> None:
    """Write one HTML file about RUNs, and its plots as PNG.

    It shows the records in the run folders: accuracies, training, confusions, calibration, exported
    files, the newest speed table and provenance. It loads no model, and the file needs no network.

    The default RUN is the newest finished student, or any finished run if there is no student.
    """
    from kdedge.api.report import make_report

    report, runs = make_report(list(sources), output, root)
    for problem in (problem for run in runs for problem in run.problems):
        log.warning("%s", problem)
    # The command that makes a missing record, if one is missing
    following = next(iter(runs[0].missing.values()), ["show", str(runs[0].run.path)])
    text = f"Wrote {report.page} and {len(report.pictures)} pictures\n{next_line(*following)}"
    record = {"runs": [str(records.run.path) for records in runs], **report.to_dict()}
    print_result(record, as_json=as_json, text=text)
