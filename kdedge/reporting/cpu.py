"""The fastest file on a CPU, as `kdedge export --cpu` measured it on each machine."""

from __future__ import annotations

from kdedge.reporting.blocks import Table
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.cpu_choice import readable_choices


def cpu_tables(artifact: Artifact) -> list[Table]:
    """A table for each machine that measured; none without a measurement."""
    return [
        Table(
            f"Fastest on {choice.machine.cpu}: {choice.file}",
            *choice.table,
            " ".join(choice.notes),
            n_text=2,
        )
        for choice in readable_choices(artifact)
    ]
