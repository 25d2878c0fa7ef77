"""A page about runs."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.errors import RecipeError
from kdedge.files import home_path, refuse_existing
from kdedge.packages import need
from kdedge.runs.find import RunOrArtifact, find_run, named_artifact
from kdedge.runs.folder import runs_folder

if TYPE_CHECKING:
    from kdedge.reporting.run_records import RunRecords

log = logging.getLogger(__name__)


def report(
    *runs: RunOrArtifact, output: str | Path | None = None, root: str | Path | None = None
) -> Path:
    """Writes one HTML page about runs.

    It shows the records in the run folders; no model is loaded.

    Args:
        runs: `Run`s, folders or names; the newest finished student if left out.
        output: the folder to write, which must not exist; `report/NN` in the first run if left out.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.

    Returns:
        The HTML file.

    Raises:
        RecipeError: no such run, an artifact that is not its run's newest, or the output folder
            exists.
        MissingPackage: the extra `report` is not installed.

    Examples:
        >>> page = kdedge.report("line3", "line3/01")
    """
    return write_page(runs, output, root)[0]


def write_page(
    runs: Sequence[RunOrArtifact], output: str | Path | None, root: str | Path | None
) -> tuple[Path, list[RunRecords]]:
    """Writes the page of `report`; also returns the records that it shows."""
    need("jinja2", "matplotlib")
    from kdedge.reporting.page import write_report
    from kdedge.reporting.run_records import run_records

    folder = None if output is None else home_path(output)
    if folder is not None:
        refuse_existing(folder)  # before reading runs
    root = runs_folder(root, *runs)
    names = runs or (None,)
    folders = [find_run(name, root) for name in names]
    for name, run in zip(names, folders, strict=True):
        artifact = named_artifact(name, root)
        newest = run.newest_artifact or run.path
        if artifact is not None and artifact.resolve() != newest.resolve():
            raise RecipeError(
                f"{artifact} is not the newest artifact of {run.path}, and a report shows that.\n"
                "  Name the run, or look at the artifact with: kdedge show"
                f" {shlex.quote(str(artifact))}"
            )
    records = [run_records(run) for run in {run.path.resolve(): run for run in folders}.values()]
    page = write_report(records, folder)
    for problem in (problem for record in records for problem in record.problems):
        log.warning("%s", problem)
    return page, records
