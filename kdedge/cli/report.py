"""Write one HTML file about runs: tables, plots, worst images, provenance."""

from __future__ import annotations

from pathlib import Path

import click

from kdedge.cli._options import runs_option
from kdedge.cli._output import json_option, next_line, print_result
from kdedge.errors import RecipeError
from kdedge.report.records import RunRecords, gather
from kdedge.runs.find import find_run


@click.command("report")
@click.argument("sources", metavar="[RUN]...", nargs=-1)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write here. Must not exist. [default: report/NN in the first run]",
)
@runs_option
@json_option
def command(sources: tuple[str, ...], output: Path | None, root: Path, as_json: bool) -> None:
    """Write one HTML file about RUNs, and its pictures as PNG.

    It shows what the runs' folders hold: accuracies, training, confusions, calibration, exported
    files, the newest speed table and provenance; no model is loaded. The file needs no network.
    Without an argument it is about the newest finished student, or any run where no student is
    finished.
    """
    from kdedge.report.write import write_report

    if output is not None and (output.exists() or output.is_symlink()):
        raise RecipeError(
            f"{output} exists, and nothing is overwritten.\n  Name another folder, or move it away."
        )
    found = {
        run.path.resolve(): run for run in (find_run(name, root) for name in sources or (None,))
    }
    runs = [gather(run) for run in found.values()]
    report = write_report(runs, output)
    text = f"Wrote {report.page} and {len(report.pictures)} pictures\n{_next(runs[0])}"
    record = {"runs": [str(records.run.path) for records in runs], **report.to_dict()}
    print_result(record, as_json=as_json, text=text)


def _next(records: RunRecords) -> str:
    """The command that makes what the report has not; without one, a look at the run's files."""
    for words in records.missing.values():
        return next_line(*words)
    return next_line("show", records.run.path)
