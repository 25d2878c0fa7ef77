"""Show a run or an artifact: results, provenance, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kdedge.artifacts.model_card import files_table
from kdedge.artifacts.ship import file_to_ship
from kdedge.cli.options import runs_option
from kdedge.cli.output import json_option, print_result, table, table_text
from kdedge.cli.results import accuracy_texts, megabytes, run_record, unlabeled_text
from kdedge.records.tables import digits
from kdedge.reporting.headline import conclusion_of
from kdedge.reporting.model_records import model_records
from kdedge.runs.find import find_run, named_artifact
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import labeled_results
from kdedge.runtime.artifact import Artifact, load_artifact


@click.command("show")
@click.argument("run", metavar="[RUN|ARTIFACT]", required=False)
@click.option(
    "--all", "is_whole", is_flag=True, help="Also show settings, versions, hashes and every file."
)
@runs_option
@json_option
def command(run: str | None, is_whole: bool, root: Path, as_json: bool) -> None:
    """Show the results, provenance and files of a RUN, or the content of an ARTIFACT.

    RUN is a run folder, name/NN, or a recipe's name for its newest finished student, or for any
    finished run if it has no student. The default is the newest finished student, or any finished
    run if there is no student.
    """
    exported = named_artifact(run, root)
    if exported is not None:
        artifact = load_artifact(exported)
        text = artifact_text(artifact, is_whole=is_whole)
        print_result(artifact_record(artifact), as_json=as_json, text=text)
        with_models = {file.data for file in artifact.files}  # checked with their model files
        for name in [*(file.name for file in artifact.files), *artifact.others]:
            if name not in with_models:
                artifact.checked(name)
        return
    folder = find_run(run, root)
    print_result(run_record(folder), as_json=as_json, text=_text(folder, is_whole=is_whole))


def _text(run: RunFolder, *, is_whole: bool) -> str:
    record = run.read_provenance()
    measured = model_records(run)
    rows = labeled_results(run, measured.results)
    sizes = sorted(run.sizes.items())
    files = [[str(path.relative_to(run.path)), f"{n_bytes:,} bytes"] for path, n_bytes in sizes]
    size = megabytes(sum(n_bytes for _, n_bytes in sizes))
    summary = f"{len(files)} files, {size}; --all lists them, with settings, versions and hashes"
    parts = [
        f"{run.path}: {run.role}, {record.status}",
        "\n".join(conclusion_of(measured)) or None,
        accuracy_texts(rows) if rows else None,
        None if measured.unlabeled is None else unlabeled_text(measured.unlabeled),
        table(_facts(run, record, is_whole=is_whole)),
        table(files, align="lr") if is_whole else summary,
    ]
    return "\n\n".join(part for part in parts if part is not None)


def _facts(run: RunFolder, record: Provenance, *, is_whole: bool) -> list[list[str]]:
    facts = {
        **record.facts,
        "artifacts": ", ".join(f"artifacts/{folder.name}" for folder in run.artifacts),
        "changed since the export": ", ".join(
            f"artifacts/{folder.name}" for folder in run.changed_artifacts
        ),
    }
    if is_whole:
        facts |= {
            "settings": _plain(record.settings),
            "versions": _plain({key: value for key, value in record.versions.items() if value}),
            "hashes": _plain({key: str(value)[:12] for key, value in record.hashes.items()}),
        }
    return [[key, str(value)] for key, value in facts.items() if value]


def _plain(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def artifact_record(artifact: Artifact) -> dict[str, Any]:
    """Returns the facts of an artifact that `show` prints, as plain values."""
    return {
        "artifact": str(artifact.path),
        "name": artifact.name,
        "class_names": list(artifact.class_names),
        "open_classes": artifact.open_classes.to_dict() if artifact.open_classes else None,
        **artifact.input_record(),
        "files": [file.to_dict() for file in artifact.files],
        "provenance": artifact.provenance,
    }


def artifact_text(artifact: Artifact, *, is_whole: bool) -> str:
    """Returns the facts of an artifact that `show` prints, as text; `is_whole` with --all."""
    shown = ", ".join(artifact.class_names[:8])
    more = ", ..." if len(artifact.class_names) > 8 else ""
    provenance = artifact.provenance
    classes = artifact.open_classes
    open_ = "" if classes is None else f"; open, in {classes.file}"
    # Where in the graph the pixels are normalized, if the artifact records it
    built_in = (file.built_with.get("normalized") for file in artifact.files)
    normalized = next((f": {where}" for where in built_in if where), "")
    shipped = file_to_ship(artifact, None)
    to_ship = {}
    if shipped is not None:
        cost = ", not timed; kdedge export --cpu times it" if shipped.processor == "CPU" else ""
        if shipped.time is not None:
            doubt = "" if shipped.time.doubt is None else ", in doubt"
            cost = f", {digits(shipped.time.p50_ms)} ms{doubt}"
        to_ship[f"for a {shipped.processor}, ship"] = f"{shipped.file.name}{cost}"
    dtype = artifact.input_record()["input"]["dtype"]
    size = artifact.preprocess.size_px
    facts = {
        "run": provenance.get("run"),
        **to_ship,
        "method": provenance.get("method"),
        "classes": f"{len(artifact.class_names)}: {shown}{more}{open_}",
        "takes": f"{dtype} [batch, 3, {size}, {size}], RGB; normalization is in the graph"
        f"{normalized}",
    }
    if is_whole:
        facts |= {
            "trained": provenance.get("trained_at"),
            "versions": _plain(provenance.get("versions", {})),
            "hashes": _plain({file.name: file.sha256[:12] for file in artifact.files}),
        }
    rows = [[key, str(value)] for key, value in facts.items() if value is not None]
    parts = [f"{artifact.path}: artifact of {artifact.name}", table(rows)]
    if (only := provenance.get("predicts_only")) is not None:
        parts.insert(1, f"It predicts {only!r} for every image that it was compared on.")
    parts.append(table_text(files_table(artifact)))
    return "\n\n".join(parts)
