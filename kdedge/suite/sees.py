"""The data that a row of a suite's table learns from, directly and through its teacher."""

from __future__ import annotations

import contextlib
from pathlib import Path

from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import DataSpec, TeacherSpec
from kdedge.errors import KdedgeError
from kdedge.methods.registry import Sees, load_method
from kdedge.runs.find import find_run
from kdedge.setup.method import Role, choose_method


def row_sees(loaded: LoadedRecipe, role: Role) -> Sees:
    """The kinds of data that a role's model learns from; a student's include its teacher's.

    What the model behind a file of probabilities has learned from is unknown.
    """
    recipe = loaded.recipe
    own = _with_data(choose_method(loaded, role).sees, recipe.data)
    teacher = recipe.teacher
    if role == "student" and teacher is not None and teacher.file is None:
        own |= _with_data(load_method(_teacher_method(teacher)).METHOD.sees, recipe.data)
    return own


def _with_data(declared: Sees, data: DataSpec) -> Sees:
    """The declaration, adapted if the labels are pseudo-labels from a file."""
    if not declared.labels or data.pseudo_labels is None:
        return declared
    return Sees(labels=data.labeled is not None, unlabeled_images=True, novel_class_names=True)


def _teacher_method(teacher: TeacherSpec) -> str:
    """The method of the teacher, which may be an existing run."""
    if teacher.run is not None:
        with contextlib.suppress(KdedgeError):  # errors of that run are reported when it is used
            return str(find_run(str(teacher.run), Path()).read_provenance().method)
    return teacher.method
