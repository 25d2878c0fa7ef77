"""What made a run: facts for the start of its report, and everything else for its end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdedge.config.recipe import ModelSpec, Recipe, SourceSpec
from kdedge.report.blocks import Block, Facts, Note, Table, Text
from kdedge.report.numbers import percent, points, scaled
from kdedge.report.records import RunRecords
from kdedge.runtime.artifact import Artifact


def done_blocks(records: RunRecords) -> list[Block]:
    """What was done, with which commands, and what was not."""
    provenance = records.provenance
    facts = {
        "method": provenance.method,
        "settings": _plain(provenance.settings),
        "backbone": _backbone(records),
        "taught by": provenance.teacher_run,
        "imported from": provenance.imported_from,
        "classes": _classes(records),
        **_images(records),
        "training": _training(records),
        "seed": provenance.seed,
        "exported": _exported(records.artifact),
    }
    blocks: list[Block] = [Facts(_rows(facts))]
    commands = _commands(records)
    if commands:
        blocks.append(Text("Commands", "\n".join(commands)))
    lines = [
        f"No {what} here: {shlex.join(['kdedge', *command])} adds it to the next report."
        for what, command in records.missing.items()
    ]
    if not records.can_evaluate and not records.results:
        lines.append("The recipe has no test images, so that accuracy was not measured.")
    lines += [f"Left out, as it is damaged: {problem}" for problem in records.problems]
    return [*blocks, Note(lines)] if lines else blocks


def provenance_blocks(records: RunRecords) -> list[Block]:
    """Versions, hashes, times and the recipe."""
    provenance = records.provenance
    facts = {
        "run": str(records.run.path),
        "status": provenance.status,
        "started": provenance.started_at,
        "finished": provenance.finished_at,
        "resumed": ", ".join(str(entry.resumed_at) for entry in provenance.resumed),
        "device": provenance.device,
        "platform": provenance.platform,
        "versions": _plain(provenance.versions),
        **{f"SHA-256 of {key}": value for key, value in provenance.hashes.items()},
        "speed": None if records.speed_file is None else str(records.speed_file),
        "artifact": None if records.artifact is None else str(records.artifact.path),
    }
    blocks: list[Block] = [Facts(_rows(facts))]
    if records.recipe is not None:
        blocks.append(Text("The recipe, resolved", records.recipe.text, is_folded=True))
    return blocks


def files_table(artifact: Artifact) -> Table:
    """Exported files and how each compares with the float32 model."""
    cells = []
    for file in artifact.files:
        found = file.parity
        cells.append(
            [
                *(file.name, file.precision, file.gate, "-" if found is None else found.runtime),
                scaled(file.n_bytes, 1e6),
                *(percent(getattr(found, key, None)) for key in _PARITY),
                points(None if found is None else found.accuracy_drop),
                "-" if found is None else f"{found.n_images:,}",
            ]
        )
    header = ["file", "precision", "gate", "compared in", "MB", "agreement", "accuracy"]
    header += ["of float32", "drop", "images"]
    compared = sorted({file.parity.images for file in artifact.files if file.parity})
    caption = (
        f"Percent and points, of {', '.join(compared) or 'nothing yet'}, measured at export."
        f" Gates: {_gates(artifact.gates)}. {artifact.path.parent.name}/{artifact.path.name}."
    )
    return Table("Exported files against the float32 model", header, cells, caption, n_text=4)


_PARITY = ("agreement_percent", "accuracy_percent", "reference_accuracy_percent")


def _gates(gates: Mapping[str, Any]) -> str:
    agreement = gates.get("agreement") or {}
    parts = [
        f"agreement of {precision} at least {least:g} %" for precision, least in agreement.items()
    ]
    if gates.get("max_drop") is not None:
        parts.append(f"drop at most {gates['max_drop']:g} points")
    return ", ".join(parts) or "none"


def model_name(recipe: Recipe, kind: str) -> str | None:
    """The backbone that a run of a kind has; a baseline has the student's."""
    spec: ModelSpec | None = recipe.teacher if kind == "teacher" else recipe.student
    if spec is None:
        return None
    name = spec.config.stem if spec.config is not None else spec.backbone
    weights = None if spec.weights is None else Path(str(spec.weights)).name
    return ", ".join(str(part) for part in (name, weights) if part is not None) or None


def _backbone(records: RunRecords) -> str | None:
    return None if records.recipe is None else model_name(records.recipe.recipe, records.run.kind)


def _classes(records: RunRecords) -> str | None:
    names = next((found.per_class for found in records.results.values()), None)
    if names is None:
        return None
    is_split = any(found.split == "base-to-novel" for found in records.results.values())
    halves = f", the first {(len(names) + 1) // 2:,} of them base" if is_split else ""
    return f"{len(names):,}{halves}"


def _images(records: RunRecords) -> dict[str, str]:
    if records.recipe is None:
        return {}
    data = records.recipe.recipe.data
    keys = ("unlabeled", "labeled", "validation", "test")
    found = {key: getattr(data, key) for key in keys}
    return {f"{key} images": _source(spec) for key, spec in found.items() if spec is not None}


def _source(spec: SourceSpec) -> str:
    """A source as the recipe has it."""
    return _plain(spec.model_dump(exclude_defaults=True))


def _training(records: RunRecords) -> str | None:
    provenance = records.provenance
    found = provenance.summary.training
    if found is None:
        return None
    return (
        f"{found.steps:,} steps in {found.epochs} epochs, {found.seconds:,.0f} s on"
        f" {provenance.device}; final loss {found.final_loss:.4g}"
    )


def _exported(artifact: Artifact | None) -> str | None:
    return None if artifact is None else ", ".join(file.name for file in artifact.files)


def _commands(records: RunRecords) -> list[str]:
    commands = [records.speed.command] if records.speed is not None else []
    if records.provenance.command:
        program, *arguments = records.provenance.command
        name = Path(program).name
        # `python -m kdedge`, as a suite's cells run
        commands.insert(0, shlex.join(["kdedge" if name == "__main__.py" else name, *arguments]))
    return commands


def _rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, str(value)) for key, value in facts.items() if value not in (None, "", {})]


def _plain(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)
