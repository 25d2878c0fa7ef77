"""The classes of an artifact with open classes: writes the class matrix, and later changes it.

Each change is a new file, and `artifact.json`, which names it, is replaced last: a reader gets the
classes either before or after the change. Earlier matrices stay in the folder. Loads no torch.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdedge import __version__
from kdedge.artifacts.model_card import renew_model_card
from kdedge.data.classes import check_class_names
from kdedge.errors import DataError, RecipeError
from kdedge.files import write_atomic
from kdedge.locks import lock_itself
from kdedge.runtime.artifact import (
    Artifact,
    ClassChange,
    Matrix,
    OpenClasses,
    load_artifact,
    matrix_bytes,
    matrix_name,
)
from kdedge.runtime.none_of_these import NONE
from kdedge.runtime.open_classes import load_matrix


@dataclass(frozen=True, eq=False)
class NewClasses:
    """Classes to add to an artifact.

    Attributes:
        names: the class names.
        vectors: [N, D], the teacher's class vectors, of at most unit length.
        vectors_hash: hash of what the vectors were made from.
    """

    names: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    vectors_hash: str


def write_classes(
    artifact: Artifact, vectors: npt.NDArray[np.float32], *, scale: float
) -> Artifact:
    """Writes the class matrix of a new artifact, and returns the artifact that lists it.

    Args:
        artifact: the artifact, which is not saved yet.
        vectors: [C, D], the class vectors, in the order of its class names.
        scale: `logit_scale.exp()`.

    Raises:
        ResourceError: the file cannot be written.
    """
    classes = OpenClasses(matrix_name(1), vectors.shape[1], scale)
    return _write_matrix(artifact, _matrix_rows(vectors, scale), classes)


def write_changed_classes(
    folder: Path, *, added: NewClasses | None = None, removed: Sequence[str] = ()
) -> Artifact:
    """Removes classes, and adds others at the end; complete or not at all.

    Args:
        folder: the artifact's folder.
        added: the classes to add.
        removed: names of the classes to remove.

    Returns:
        The artifact with its new classes, as it was saved.

    Raises:
        RecipeError: the artifact has no open classes, or lacks a class to remove.
        DataError: fewer than two classes would be left, or two would have the same name; or the
            artifact or its matrix has changed since it was written; or the vectors do not fit its
            features.
        InUseError: another process is changing the artifact.
        ResourceError: a file cannot be written.
    """
    with lock_itself(folder):
        artifact = load_artifact(folder)
        new_names = () if added is None else added.names
        names = changed_names(artifact, new_names, removed)
        classes = artifact.open_classes
        assert classes is not None  # `changed_names` has checked it
        kept = [name not in removed for name in artifact.class_names]
        matrix = load_matrix(artifact)[kept]
        if added is not None:
            vectors = added.vectors
            if artifact.provenance.get("balance") and vectors.shape[1] == classes.dim - 1:
                # The last feature is 1 and multiplies the class's offset, 0 for a new class
                vectors = np.pad(vectors, ((0, 0), (0, 1)))
            if vectors.shape != (len(added.names), classes.dim):
                raise DataError(
                    f"The new class vectors are {list(added.vectors.shape)}, but the features of"
                    f" {folder} take [{len(added.names)}, {classes.dim}].\n"
                    "  They are of another teacher: name the run that the artifact is from."
                )
            matrix = np.concatenate([matrix, _matrix_rows(vectors, classes.scale)])
        change = ClassChange(
            at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            kdedge=__version__,
            added=new_names,
            removed=tuple(removed),
            class_vectors=None if added is None else added.vectors_hash,
        )
        changes = (*classes.changes, change)
        versions = map(matrix_name, itertools.count(len(changes) + 1))
        # An interrupted change may have left a file that is not listed
        file = next(name for name in versions if not (folder / name).exists())
        artifact = dataclasses.replace(artifact, class_names=names)
        classes = dataclasses.replace(classes, file=file, changes=changes)
        artifact = _write_matrix(artifact, matrix, classes)
        artifact.save()
        return renew_model_card(artifact)


def changed_names(
    artifact: Artifact, added: Sequence[str], removed: Sequence[str]
) -> tuple[str, ...]:
    """Returns the class names after a change.

    Raises:
        RecipeError: the artifact has no open classes, or lacks a class to remove.
        DataError: fewer than two classes would be left, or two would have the same name, or a name
            is empty or not printable or means none of the classes.
    """
    if artifact.open_classes is None:
        raise RecipeError(
            f"The classes of {artifact.path} are part of its graphs and cannot be changed.\n"
            "  Export the run again: with open classes, or with a file of other classes."
        )
    for number, name in enumerate(removed):
        if name not in artifact.class_names or name in removed[:number]:
            what = "is removed twice" if name in artifact.class_names else "is no class"
            raise RecipeError(
                f'"{name}" {what} of {artifact.path}.\n'
                f"  `kdedge classes {artifact.path}` lists its classes."
            )
    remaining = [name for name in artifact.class_names if name not in removed]
    names = tuple(remaining + [name.strip() for name in added])
    where = f"The changed class list of {artifact.path}"
    if "" in names:
        raise DataError(f"{where} has an empty name.\n  Give each class a name.")
    check_class_names(names, where)
    if artifact.none_of_these is not None and NONE in names:
        raise DataError(
            f'{where} has "{NONE}", which is the prediction for images of none of the classes.\n'
            "  Give the class another name."
        )
    return names


def _write_matrix(artifact: Artifact, matrix: Matrix, classes: OpenClasses) -> Artifact:
    """Writes the matrix into the artifact's folder; returns the artifact that lists it."""
    write_atomic(artifact.path / classes.file, matrix_bytes(matrix))
    return dataclasses.replace(artifact.with_others(classes.file), open_classes=classes)


def _matrix_rows(vectors: npt.NDArray[np.float32], scale: float) -> Matrix:
    """Rows of the class matrix: `scale` times the vectors, computed in float64, in float32."""
    return (scale * vectors.astype(np.float64)).astype(np.float32)
