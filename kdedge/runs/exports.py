"""The hash of each `artifact.json` when it was exported, which shows later changes."""

from __future__ import annotations

import json
from pathlib import Path

from kdedge.files import sha256_file, write_json
from kdedge.runs.folder import RunFolder
from kdedge.runtime.artifact import FILE_NAME


def record_export(run: RunFolder, artifact: Path) -> None:
    """Notes an artifact's hash in the run; one outside the run by its whole path."""
    path = run.path / "exports.json"
    name = artifact.name if artifact.parent == run.path / "artifacts" else str(artifact.resolve())
    write_json(path, {**_recorded(path), name: sha256_file(artifact / FILE_NAME)})


def changed_exports(run: RunFolder) -> list[Path]:
    """The run's artifacts whose record is another one now: files, classes or a change by hand."""
    recorded = _recorded(run.path / "exports.json")
    return [
        folder
        for folder in run.exports
        if recorded.get(folder.name) not in (None, sha256_file(folder / FILE_NAME))
    ]


def _recorded(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
