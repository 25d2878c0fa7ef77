"""The last section of a run's chapter: how the run was made."""

from __future__ import annotations

import shlex

from kdedge.config.recipe import ModelSpec
from kdedge.records.tables import Table
from kdedge.reporting.blocks import Block, Text
from kdedge.reporting.run_records import RunRecords


def provenance_blocks(records: RunRecords) -> list[Block]:
    """Method, commands, versions, hashes, times and the recipe of a run."""
    provenance = records.provenance
    facts = {
        "run": records.run.path,
        "status": provenance.status,
        "backbone": backbone_of(records, records.run.role),
        **provenance.facts,
        "resumed": ", ".join(str(entry.resumed_at) for entry in provenance.resumed),
        "platform": provenance.platform,
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        **{f"SHA-256 of {key}": value for key, value in provenance.hashes.items()},
        "speed": records.speed_file,
        "artifact": None if records.artifact is None else records.artifact.path,
    }
    rows = [[key, str(value)] for key, value in facts.items() if value not in (None, "")]
    blocks: list[Block] = [Table("", [], rows, align="l")]
    commands = [shlex.join(provenance.command)] if provenance.command else []
    commands += [] if records.speed is None else [records.speed.command]
    if commands:
        blocks.append(Text("Commands", "\n".join(commands)))
    if records.recipe is not None:
        blocks.append(Text("The recipe, resolved", records.recipe.text))
    return blocks


def missing_lines(records: RunRecords) -> list[str]:
    """Lines about missing and damaged records, with the commands that add missing ones."""
    lines = [
        f"No {what} yet. To add it to the next report, run: {shlex.join(['kdedge', *command])}"
        for what, command in records.missing.items()
    ]
    if not records.can_evaluate and not records.results and records.unlabeled is None:
        lines.append("The recipe has no test images, so accuracy was not measured.")
    return lines + [f"Left out, as it cannot be read: {problem}" for problem in records.problems]


def backbone_of(records: RunRecords, role: str) -> str | None:
    """The backbone of the teacher or the student; a baseline uses the student's."""
    recipe = None if records.recipe is None else records.recipe.recipe
    spec: ModelSpec | None = getattr(recipe, "teacher" if role == "teacher" else "student", None)
    if spec is None:
        return None
    return spec.config.stem if spec.config is not None else spec.backbone
