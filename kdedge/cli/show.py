"""Show a run or an artifact: provenance, status, accuracies, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import runs_option
from kdedge.cli._output import json_option, print_result, table
from kdedge.cli._results import accuracy_table, evaluation_rows, run_record
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance, RoundSummary


@click.command("show")
@click.argument("run", metavar="[RUN|ARTIFACT]", required=False)
@runs_option
@json_option
def command(run: str | None, root: Path, as_json: bool) -> None:
    """Show the provenance, status, accuracies and files of RUN, or what an ARTIFACT holds.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished run. The default is the
    newest finished student, or any finished run if there is no student.
    """
    if run is not None and (Path(run) / "artifact.json").is_file():
        from kdedge.cli._artifact import artifact_record, artifact_text
        from kdedge.runtime.artifact import load_artifact

        artifact = load_artifact(Path(run))
        print_result(artifact_record(artifact), as_json=as_json, text=artifact_text(artifact))
        return
    found = find_run(run, root)
    print_result(run_record(found), as_json=as_json, text=_text(found))


def _text(run: RunFolder) -> str:
    record = run.read_provenance()
    facts = _facts(record)
    if (run.path / "artifacts").is_dir():
        from kdedge.cli._artifact import resealed_artifacts

        told = resealed_artifacts(run)
        facts += [["artifacts", told]] if told else []
    parts = [f"{run.path}: {run.kind}, {record.status}", table(facts)]
    rows = evaluation_rows(run)
    if rows:
        parts.append(accuracy_table(rows))
    parts.append(table(_files(run), align="lr"))
    return "\n\n".join(parts)


def _facts(record: Provenance) -> list[list[str]]:
    training = record.summary.training
    facts = {
        "method": record.method,
        "settings": _plain(record.settings),
        "taught by": record.teacher_run,
        "imported from": record.imported_from,
        "protocol": "official, as the public code" if record.official else None,
        "seed": record.seed,
        "device": record.device,
        "trained": training and f"{training.steps:,} steps in {training.seconds:.0f} s",
        "final loss": training and f"{training.final_loss:.4g}",
        "pseudo-labels": _rounds(record.summary.rounds),
        "started": record.started_at,
        "finished": record.finished_at,
        "versions": _plain({key: value for key, value in record.versions.items() if value}),
        "hashes": _plain({key: str(value)[:12] for key, value in record.hashes.items()}),
    }
    return [[key, str(value)] for key, value in facts.items() if value not in (None, "", {})]


def _rounds(rounds: Sequence[RoundSummary]) -> str:
    """Number of pseudo-labels in each round, and the share of right ones where it is known."""
    texts = []
    for one in rounds:
        right = one.accuracy_percent
        known = "" if right is None else f" ({right:.2f} % right)"
        texts.append(f"{one.n_images}{known}")
    return ", ".join(texts)


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _files(run: RunFolder) -> list[list[str]]:
    """Every file of the run with its size; nothing is opened."""
    files = sorted(path for path in run.path.rglob("*") if path.is_file() and path.name != ".lock")
    return [[str(path.relative_to(run.path)), f"{path.stat().st_size:,} bytes"] for path in files]
