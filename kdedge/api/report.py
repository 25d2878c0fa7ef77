"""Writes one HTML file about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdedge.api.evaluate import run_argument
from kdedge.errors import RecipeError
from kdedge.reporting.records import gather
from kdedge.reporting.write import write_report
from kdedge.runs.find import find_run


def report(*runs: Any, output: str | Path | None = None, root: str | Path = "runs") -> Path:
    """Writes one HTML file about runs, and its plots as PNG.

    It shows the records in the run folders; no model is loaded.

    Args:
        runs: `Run`s, folders or names; the newest finished student if left out.
        output: the folder to write, which must not exist; `report/NN` in the first run if left out.
        root: folder of all runs.

    Returns:
        The HTML file.

    Raises:
        RecipeError: no such run, or the output folder exists.
        MissingPackage: the extra `report` is not installed.
    """
    folder = None if output is None else Path(output)
    if folder is not None and (folder.exists() or folder.is_symlink()):  # before reading runs
        raise RecipeError(
            f"{folder} exists, and nothing is overwritten.\n  Name another folder, or move it away."
        )
    found = [find_run(run_argument(run), Path(root)) for run in runs or (None,)]
    records = [gather(run) for run in {run.path.resolve(): run for run in found}.values()]
    return write_report(records, folder).page
