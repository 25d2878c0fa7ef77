"""Summarizes a run for a list: status, accuracy, size on disk, exports."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from kdedge.files import sha256_file, write_json
from kdedge.records.record import if_readable, read_record
from kdedge.runs.folder import RunFolder
from kdedge.runs.provenance import Provenance
from kdedge.runs.results import read_unlabeled, stored_evaluation
from kdedge.runtime.artifact import ARTIFACT_FILE


def summary_of(run: RunFolder, record: Provenance) -> dict[str, Any]:
    """Returns a run as plain values: status, accuracy, size, exports."""
    result = stored_evaluation(run).get(run.role)
    unlabeled = if_readable(read_unlabeled, run)
    which = value = n_images = None
    if result is not None:
        which = "all" if result.harmonic_mean is None else "HM"
        value, n_images = result.main_accuracy, result.n_images
    elif unlabeled is not None and unlabeled.agreement_percent is not None:
        which = "agrees"
        value, n_images = unlabeled.agreement_percent, unlabeled.n_images
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
        "n_bytes": sum(sizes_of(run).values()),
        "artifacts": [folder.name for folder in run.artifacts],
    }


def sizes_of(run: RunFolder) -> dict[Path, int]:
    """The bytes of every file of a run except its lock; a training may delete some meanwhile."""
    sizes: dict[Path, int] = {}
    for folder, _, names in os.walk(run.path):  # passes over folders that are gone
        for path in (Path(folder, name) for name in names if name != ".lock"):
            with contextlib.suppress(OSError):
                sizes[path] = path.stat().st_size
    return sizes


def record_export(run: RunFolder, artifact: Path) -> None:
    """Writes an artifact's hash into the run; an artifact outside the run gets its full path."""
    path = run.path / "exports.json"
    name = artifact.name if artifact.parent == run.path / "artifacts" else str(artifact.resolve())
    write_json(path, {**_recorded(path), name: sha256_file(artifact / ARTIFACT_FILE)})


def changed_artifacts(run: RunFolder) -> list[Path]:
    """The run's artifacts whose `artifact.json` has changed since the run recorded its hash."""
    recorded = _recorded(run.path / "exports.json")
    return [
        folder
        for folder in run.artifacts
        if recorded.get(folder.name) not in (None, sha256_file(folder / ARTIFACT_FILE))
    ]


def _recorded(path: Path) -> dict[str, str]:
    """The hashes that `record_export` wrote: artifact name -> SHA-256."""
    if not path.exists():
        return {}
    return if_readable(read_record, dict[str, str], path) or {}
