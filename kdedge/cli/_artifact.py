"""What `kdedge show` prints about artifacts."""

from __future__ import annotations

from typing import Any

from kdedge.cli._output import percent, table
from kdedge.runtime.artifact import Artifact


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
    return "\n\n".join([*parts, table(files, header=header, align="llrrl")])


def _open(artifact: Artifact) -> str:
    """Where the class vectors are, if they are not in the graph."""
    classes = artifact.open_classes
    return "" if classes is None else f"; open, in {classes.file}"


def _where(artifact: Artifact) -> str:
    """Where the graph normalizes the pixels, if the artifact records it."""
    found = (file.built_with.get("normalized") for file in artifact.files)
    return next((f": {where}" for where in found if where), "")
