"""List the runs: status, accuracy, size, artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.cli.options import runs_option
from kdedge.cli.output import json_option, next_line, print_result, table
from kdedge.cli.results import megabytes
from kdedge.records.record import if_readable
from kdedge.records.tables import decimals
from kdedge.runs.find import runs_in
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import read_unlabeled, readable_evaluation


@click.command("runs")
@click.argument("name", required=False)
@runs_option
@json_option
def command(name: str | None, root: Path, as_json: bool) -> None:
    """List the runs, or those of the recipe NAME: status, accuracy, size on disk, artifacts.

    The accuracy is the harmonic mean (HM) of base and novel classes for base-to-novel, else the
    accuracy over all images. Compare only runs of the same recipe with the same number of test
    images. Without test images, it is the agreement with the teacher (agrees).
    """
    rows = []
    for run, record in runs_in(root):
        if name in (None, run.path.parent.name):
            rows.append(_summary(run, record))
    what = "run" if name is None else f"run of {name}"
    text = _text(rows) if rows else f"There is no {what} in {root}."
    print_result({"runs": rows}, as_json=as_json, text=text)


def _summary(run: RunFolder, record: Provenance) -> dict[str, Any]:
    """Returns a run as plain values: status, accuracy, size, exports."""
    result = readable_evaluation(run).get(run.role)
    unlabeled = if_readable(read_unlabeled, run)
    which = value = n_images = None
    if result is not None:
        which = "all" if result.harmonic_mean is None else "HM"
        value = result.main_accuracy
        n_images = result.n_images
    elif unlabeled is not None and unlabeled.agreement_percent is not None:
        which = "agrees"
        value = unlabeled.agreement_percent
        n_images = unlabeled.n_images
    was_killed = record.status == "running" and not run.is_in_use
    return {
        "run": run.name,
        "path": str(run.path),
        "role": run.role,
        "method": record.method,
        "status": "interrupted" if was_killed else str(record.status),
        "started_at": record.started_at,
        "command": record.command,
        "measure": which,
        "percent": value,
        "n_images": n_images,
        "n_bytes": sum(run.sizes.values()),
        "artifacts": [folder.name for folder in run.artifacts],
    }


def _text(records: list[dict[str, Any]]) -> str:
    header = ["run", "role", "method", "status", "accuracy", "", "images", "size", "artifacts"]
    rows = [
        [
            record["run"],
            record["role"],
            str(record["method"]),
            record["status"],
            decimals(record["percent"]),
            record["measure"] or "-",
            "-" if record["n_images"] is None else f"{record['n_images']:,}",
            megabytes(record["n_bytes"]),
            str(len(record["artifacts"]) or "-"),
        ]
        for record in records
    ]
    by_start = sorted(records, key=lambda record: str(record["started_at"]))
    newest = {(r["run"].split("/")[0], r["role"], r["method"]): r for r in by_start}
    unfinished = [record for record in newest.values() if record["status"] == "interrupted"]
    following = next_line("show", by_start[-1]["path"])
    words = unfinished[-1]["command"] if unfinished else None
    if words and words[0] == "kdedge":  # not a script that calls the Python API
        words = words[1:]
        if "--resume" not in words and "pseudo-label" not in words:  # the latter always goes on
            words = [*words, "--resume"]
        following = next_line(*words)
    return f"{table(rows, header=header, align='llllrlrrr')}\n{following}"
