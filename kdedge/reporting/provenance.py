"""Describes how a run was made: a summary at the start of its report, the record at its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.config.recipe import ModelSpec
from kdedge.reporting.blocks import Block, Facts, Note, Table, Text
from kdedge.reporting.records import RunRecords
from kdedge.runtime.artifact import Artifact
from kdedge.tables import figure, percent, points

_PARITY = ("agreement_percent", "accuracy_percent", "reference_accuracy_percent")


def done_blocks(records: RunRecords) -> list[Block]:
    """Method, data and commands of a run, and its missing records."""
    provenance, artifact = records.provenance, records.artifact
    facts = {
        "method": provenance.method,
        "settings": _plain(provenance.settings),
        "backbone": _backbone(records),
        "teacher": provenance.teacher_run,
        "imported from": provenance.imported_from,
        "classes": _classes(records),
        **_images(records),
        "training": _training(records),
        "seed": provenance.seed,
        "exported": ", ".join(file.name for file in artifact.files) if artifact else None,
    }
    blocks: list[Block] = [Facts(_rows(facts))]
    if commands := _commands(records):
        blocks.append(Text("Commands", "\n".join(commands)))
    lines = [
        f"No {what} yet. To add it to the next report, run: {shlex.join(['kdedge', *command])}"
        for what, command in records.missing.items()
    ]
    if not records.can_evaluate and not records.results and records.unlabeled is None:
        lines.append("The recipe has no test images, so accuracy was not measured.")
    lines += [f"Left out because it is damaged: {problem}" for problem in records.problems]
    return [*blocks, Note(lines)] if lines else blocks


def provenance_blocks(records: RunRecords) -> list[Block]:
    """Versions, hashes, times and the recipe of a run."""
    provenance = records.provenance
    facts = {
        "run": records.run.path,
        "status": provenance.status,
        "started": provenance.started_at,
        "finished": provenance.finished_at,
        "resumed": ", ".join(str(entry.resumed_at) for entry in provenance.resumed),
        "device": provenance.device,
        "threads": provenance.threads,
        "platform": provenance.platform,
        "versions": _plain(provenance.versions),
        **{f"SHA-256 of {key}": value for key, value in provenance.hashes.items()},
        "speed": records.speed_file,
        "artifact": None if records.artifact is None else records.artifact.path,
    }
    blocks: list[Block] = [Facts(_rows(facts))]
    if records.recipe is not None:
        blocks.append(Text("The recipe, resolved", records.recipe.text, is_folded=True))
    return blocks


def files_table(artifact: Artifact) -> Table:
    """Exported files and their comparisons with the float32 model."""
    cells = []
    is_calibrated = any(f.parity and f.parity.ece_percent is not None for f in artifact.files)
    errors = ("ece_percent_before", "ece_percent") if is_calibrated else ()
    for file in artifact.files:
        found = file.parity
        cells.append(
            [
                *(file.name, file.precision, file.gate, "-" if found is None else found.runtime),
                figure(file.n_bytes, 1e6),
                *(percent(getattr(found, key, None)) for key in _PARITY),
                points(None if found is None else found.accuracy_drop),
                *(percent(getattr(found, key, None)) for key in errors),
                "-" if found is None else f"{found.n_images:,}",
            ]
        )
    header = ["file", "precision", "gate", "runtime", "MB", "agreement", "accuracy"]
    header += ["float32", "drop", *(("ECE before", "ECE") if is_calibrated else ()), "images"]
    compared = sorted({file.parity.images for file in artifact.files if file.parity})
    agreement, max_drop = artifact.gates.get("agreement") or {}, artifact.gates.get("max_drop")
    gates = [f"agreement of {name} at least {least:g} %" for name, least in agreement.items()]
    gates += [] if max_drop is None else [f"drop at most {max_drop:g} points"]
    caption = (
        f"In percent and points; measured at export on {', '.join(compared) or 'no images yet'}."
        f" Gates: {', '.join(gates) or 'none'}. {artifact.path.parent.name}/{artifact.path.name}."
    )
    if artifact.temperature is not None:
        fitted = artifact.temperature
        caption += f" Scores have the temperature {fitted.value:.4g}, fitted to {fitted.images}."
    if artifact.none_of_these is not None:
        none = artifact.none_of_these
        caption += f' "None" keeps {none.share_percent:g} % of images like {none.images}.'
    return Table("Exported files compared with the float32 model", header, cells, caption, n_text=4)


def _backbone(records: RunRecords) -> str | None:
    """The backbone and its weights; a baseline uses the student's."""
    recipe = None if records.recipe is None else records.recipe.recipe
    role = "teacher" if records.run.kind == "teacher" else "student"
    spec: ModelSpec | None = getattr(recipe, role, None)
    if spec is None:
        return None
    name = spec.config.stem if spec.config is not None else spec.backbone
    weights = None if spec.weights is None else Path(spec.weights).name
    return ", ".join(part for part in (name, weights) if part is not None) or None


def _classes(records: RunRecords) -> str | None:
    names = next((found.per_class for found in records.results.values()), None)
    if names is None:
        return None
    is_split = any(found.split == "base-to-novel" for found in records.results.values())
    halves = f", the first {(len(names) + 1) // 2:,} of them base" if is_split else ""
    return f"{len(names):,}{halves}"


def _images(records: RunRecords) -> dict[str, str]:
    """The recipe's image sources, as it writes them."""
    if records.recipe is None:
        return {}
    data = records.recipe.recipe.data
    found = {key: getattr(data, key) for key in ("unlabeled", "labeled", "validation", "test")}
    return {
        f"{key} images": _plain(spec.model_dump(exclude_defaults=True))
        for key, spec in found.items()
        if spec is not None
    }


def _training(records: RunRecords) -> str | None:
    provenance = records.provenance
    found = provenance.summary.training
    if found is None:
        return None
    return (
        f"{found.steps:,} steps in {found.epochs} epochs, {found.seconds:,.0f} s on"
        f" {provenance.device}; final loss {found.final_loss:.4g}"
    )


def _commands(records: RunRecords) -> list[str]:
    commands = [records.speed.command] if records.speed is not None else []
    if records.provenance.command:
        program, *arguments = records.provenance.command
        name = Path(program).name
        # A suite runs its cells as `python -m kdedge`
        commands.insert(0, shlex.join(["kdedge" if name == "__main__.py" else name, *arguments]))
    return commands


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in facts.items() if value not in (None, "", {})]


def _plain(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
