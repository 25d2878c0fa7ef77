"""Adds classes to an artifact with open classes, and removes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.api.artifact import artifact_folder
from kdedge.api.evaluate import run_argument
from kdedge.errors import DataError, RecipeError
from kdedge.runs.find import find_run
from kdedge.runtime.artifact import Artifact, load_artifact

if TYPE_CHECKING:
    from kdedge.deploy.classes import NewClasses
    from kdedge.runs.folder import RunFolder

log = logging.getLogger(__name__)


def change_classes(
    source: Any,
    *,
    add: str | Sequence[str] = (),
    remove: str | Sequence[str] = (),
    run: Any = None,
    root: str | Path = "runs",
    device: str | None = None,
) -> Artifact:
    """Removes classes of an artifact with open classes, and adds new ones at its end.

    Nothing is trained, and no graph or engine is built again. Each change writes a new class
    matrix; the earlier ones stay. Removing needs no run and no torch.

    Args:
        source: an artifact or a run (its newest artifact): the object, its folder, or a run's name.
        add: names of new classes. The teacher of `run` makes their vectors.
        remove: names of classes to remove.
        run: the run that the artifact was exported from; needed to add classes.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The artifact with its new classes.

    Raises:
        RecipeError: nothing to change, no run, no such class, or the artifact has no open classes.
        DataError: a name is there already, fewer than two classes would be left, the run is another
            one than the artifact's, or its teacher is missing.
        InUseError: another process is changing the classes.
        ResourceError: the folder cannot be written.
    """
    from kdedge.deploy import classes

    added = (add,) if isinstance(add, str) else tuple(add)
    removed = (remove,) if isinstance(remove, str) else tuple(remove)
    artifact = load_artifact(artifact_folder(source, root))
    if not added and not removed:
        raise RecipeError("There is no class to add or to remove.\n  Name at least one.")
    names = classes.changed_names(artifact, added, removed)  # before the slow work
    new = None
    if added:
        if run is None:
            raise RecipeError(
                "The vectors of new classes are made by the teacher of a run.\n"
                "  Name the run that the artifact was exported from, with --from RUN."
            )
        found = find_run(run_argument(run), Path(root), prefer="student")
        new = _encode(artifact, found, names[0], names[-len(added) :], device)
        if artifact.none_of_these is not None:
            log.warning(
                'Images of new classes may get the answer "none": its limit was fitted without'
                " them.\n  To fit it again, export with images of them in data.unlabeled."
            )
    return classes.change_classes(artifact.path, added=new, removed=removed)


def _encode(
    artifact: Artifact, run: RunFolder, present: str, names: tuple[str, ...], device: str | None
) -> NewClasses:
    """The vectors of new classes, by the text encoder that made the artifact's.

    Args:
        artifact: gets the classes.
        run: the run that it was exported from.
        present: a class of the artifact; with it there are two or more, which some splits need.
        names: the new classes.
        device: as for `change_classes`.

    Raises:
        DataError: the artifact was exported from another run, or the teacher is missing.
    """
    from kdedge.deploy.classes import NewClasses
    from kdedge.runs.model import load_run
    from kdedge.setup.device import choose_device
    from kdedge.setup.workspace import Workspace

    _check_same(artifact, run)
    workspace = Workspace(run.root, choose_device(device))
    vectors = load_run(run, workspace, names=(present, *names)).vectors
    return NewClasses(names, vectors.vectors.numpy()[1:], vectors.provenance)


def _check_same(artifact: Artifact, run: RunFolder) -> None:
    """Checks that an artifact was exported from a run: by the run's hashes, seed and end."""
    record, told = run.read_provenance(), artifact.provenance
    hashes = told.get("hashes")
    own = {key: hashes.get(key) for key in record.hashes} if isinstance(hashes, dict) else None
    pairs = [(own, record.hashes), (told.get("trained_at"), record.finished_at)]
    if any(one != other for one, other in [*pairs, (told.get("seed"), record.seed)]):
        raise DataError(
            f"{artifact.path} was not exported from {run.path}, but from the run"
            f" {told.get('run')} of {told.get('trained_at')}.\n"
            "  Class vectors fit only the student that learned from their teacher: name that run."
        )
