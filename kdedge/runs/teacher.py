"""Opens the teacher of a student's run."""

from __future__ import annotations

import logging

from kdedge.errors import KdedgeError
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run

log = logging.getLogger(__name__)


def teacher_of(model: RunModel) -> RunModel | None:
    """The teacher of a student; None if it is missing or a file, and for other models."""
    name = model.run.read_provenance().teacher_run
    if name is None:
        return None
    try:
        folder = RunFolder.open(model.run.root / name)
        return load_run(folder, model.setup.workspace, names=model.class_names)
    except KdedgeError as error:
        log.warning("The teacher's predictions are left out: %s", error)
        return None
