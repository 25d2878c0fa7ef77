"""What a row of a suite's table learns from, by itself and through its teacher."""

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
    """What the model of a role sees on a recipe's data; a student's teacher sees for it too."""
    recipe = loaded.recipe
    own = _with_data(choose_method(loaded, role).sees, recipe.data)
    if role != "student" or recipe.teacher is None:
        return own
    return own | _with_data(load_method(_teacher_method(recipe.teacher)).METHOD.sees, recipe.data)


def _with_data(declared: Sees, data: DataSpec) -> Sees:
    """A declaration where labels may be a file's pseudo-labels."""
    if not declared.labels or data.pseudo_labels is None:
        return declared
    return Sees(labels=data.labeled is not None, unlabeled_images=True, novel_class_names=True)


def _teacher_method(teacher: TeacherSpec) -> str:
    """The method of the teacher, which may be a stored run's."""
    if teacher.run is not None:
        with contextlib.suppress(KdedgeError):  # what is wrong with the run is said when it is used
            return str(find_run(str(teacher.run), Path()).read_provenance().method)
    return teacher.method
