"""Show a run or an artifact: results, provenance, files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from kdedge.cli._options import runs_option
from kdedge.cli._output import json_option, percent, print_result, table
from kdedge.cli._results import (
    accuracy_tables,
    evaluation_rows,
    megabytes,
    run_record,
    unlabeled_text,
)
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.headline import fastest_file, headline_of, speed_of
from kdedge.runs.listing import changed_exports, files_of, size_of
from kdedge.runs.provenance import Provenance, RoundSummary
from kdedge.runtime.artifact import Artifact


@click.command("show")
@click.argument("run", metavar="[RUN|ARTIFACT]", required=False)
@click.option(
    "--all", "is_whole", is_flag=True, help="Also show settings, versions, hashes and every file."
)
@runs_option
@json_option
def command(run: str | None, is_whole: bool, root: Path, as_json: bool) -> None:
    """Show the results, provenance and files of a RUN, or the content of an ARTIFACT.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished run. The default is the
    newest finished student, or any finished run if there is no student.
    """
    if run is not None and (Path(run) / "artifact.json").is_file():
        from kdedge.runtime.artifact import load_artifact

        artifact = load_artifact(Path(run))
        print_result(artifact_record(artifact), as_json=as_json, text=artifact_text(artifact))
        return
    found = find_run(run, root)
    print_result(run_record(found), as_json=as_json, text=_text(found, is_whole=is_whole))


def _text(run: RunFolder, *, is_whole: bool) -> str:
    record = run.read_provenance()
    rows = evaluation_rows(run)
    parts = [
        f"{run.path}: {run.kind}, {record.status}",
        headline_of(run),
        accuracy_tables(rows) if rows else None,
        unlabeled_text(run),
        table([*_facts(run, record, is_whole=is_whole), *_changed(run)]),
        table(_files(run), align="lr") if is_whole else _summary(run),
    ]
    return "\n\n".join(part for part in parts if part is not None)


def _changed(run: RunFolder) -> list[list[str]]:
    """Exports whose record is another one than when they were exported."""
    changed = [f"artifacts/{folder.name}" for folder in changed_exports(run)]
    return [["changed since the export", ", ".join(changed)]] if changed else []


def _summary(run: RunFolder) -> str:
    """Number and size of the run's files."""
    n_files = len(list(files_of(run)))
    size = megabytes(size_of(run))
    return f"{n_files} files, {size}; --all lists them, with settings, versions and hashes"


def _facts(run: RunFolder, record: Provenance, *, is_whole: bool) -> list[list[str]]:
    training = record.summary.training
    speed = speed_of(run)
    fastest = None if speed is None else fastest_file(speed)
    facts = {
        "method": record.method,
        "teacher": record.teacher_run,
        "imported from": record.imported_from,
        "protocol": "official, as in the public code" if record.official else None,
        "seed": record.seed,
        "device": record.device,
        "threads": record.threads,
        "trained": training and f"{training.steps:,} steps in {training.seconds:.0f} s",
        "pseudo-labels": _rounds(record.summary.rounds),
        "finished": record.finished_at,
        "exports": ", ".join(f"artifacts/{folder.name}" for folder in run.exports),
        "fastest file": fastest and f"{fastest[0]}, {fastest[1]} per image",
    }
    if is_whole:
        facts |= {
            "settings": _plain(record.settings),
            "final loss": training and f"{training.final_loss:.4g}",
            "started": record.started_at,
            "versions": _plain({key: value for key, value in record.versions.items() if value}),
            "hashes": _plain({key: str(value)[:12] for key, value in record.hashes.items()}),
        }
    return [[key, str(value)] for key, value in facts.items() if value not in (None, "", {})]


def _rounds(rounds: Sequence[RoundSummary]) -> str:
    """Number of pseudo-labels in each round, and the share of correct ones if known."""
    texts = []
    for one in rounds:
        right = one.accuracy_percent
        known = "" if right is None else f" ({right:.2f} % correct)"
        texts.append(f"{one.n_images}{known}")
    return ", ".join(texts)


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def _files(run: RunFolder) -> list[list[str]]:
    """Every file of the run with its size."""
    return [
        [str(path.relative_to(run.path)), f"{path.stat().st_size:,} bytes"]
        for path in sorted(files_of(run))
    ]


def artifact_record(artifact: Artifact) -> dict[str, Any]:
    """Returns the facts of an artifact that `show` prints, as plain values."""
    return {
        "artifact": str(artifact.path),
        "name": artifact.name,
        "class_names": list(artifact.class_names),
        "open_classes": artifact.open_classes.to_dict() if artifact.open_classes else None,
        **artifact.usage(),
        "files": [file.to_dict() for file in artifact.files],
        "provenance": artifact.provenance,
    }


def artifact_text(artifact: Artifact) -> str:
    """Returns the facts of an artifact that `show` prints, as text."""
    shown = ", ".join(artifact.class_names[:8])
    more = ", ..." if len(artifact.class_names) > 8 else ""
    provenance = artifact.provenance
    facts = {
        "run": provenance.get("run"),
        "method": provenance.get("method"),
        "classes": f"{len(artifact.class_names)}: {shown}{more}{_open(artifact)}",
        "takes": f"{artifact.usage()['input']['dtype']} [batch, 3, {artifact.preprocess.size_px},"
        f" {artifact.preprocess.size_px}], RGB; normalization is in the graph{_where(artifact)}",
    }
    rows = [[key, str(value)] for key, value in facts.items() if value is not None]
    files = [
        [
            file.name,
            file.precision,
            f"{file.n_bytes:,} bytes",
            percent(file.parity.agreement_percent if file.parity else None),
            file.gate,
        ]
        for file in artifact.files
    ]
    header = ("file", "precision", "size", "agreement", "gate")
    parts = [f"{artifact.path}: artifact of {artifact.name}", table(rows)]
    if (only := provenance.get("predicts_only")) is not None:
        parts.insert(1, f"It predicts {only!r} for every image that it was compared on.")
    return "\n\n".join([*parts, table(files, header=header, align="llrrl")])


def _open(artifact: Artifact) -> str:
    """Where the class vectors are, if they are not in the graph."""
    classes = artifact.open_classes
    return "" if classes is None else f"; open, in {classes.file}"


def _where(artifact: Artifact) -> str:
    """Where the graph normalizes the pixels, if the artifact records it."""
    found = (file.built_with.get("normalized") for file in artifact.files)
    return next((f": {where}" for where in found if where), "")
