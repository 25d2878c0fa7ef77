"""Finds the teachers of a student: runs that its recipe names, finished ones, and missing ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kdedge.config.load import LoadedRecipe
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.runs.weights import features_provenance
from kdedge.setup.method import check_has_class_vectors
from kdedge.setup.teachers import teacher_recipes
from kdedge.setup.workspace import Workspace
from kdedge.training.job.job import Job
from kdedge.training.run_job import finished_run
from kdedge.training.student import StudentParts
from kdedge.training.teach import teacher_job
from kdedge.training.teachers.known import KnownTeacher


def named_teachers(loaded: LoadedRecipe, workspace: Workspace) -> list[RunFolder | None]:
    """The finished runs that the recipe names as its teachers; None for each that is to be trained.

    Files of probabilities are left out. A run in the list `teachers` may be of any kind.

    Raises:
        RecipeError: there is no such run, or the recipe has no teacher section.
    """
    teachers = teacher_recipes(loaded)
    if not teachers:
        raise RecipeError(
            "The recipe has no teacher section, but a student learns from a teacher.\n  Add one."
        )
    is_any_kind = loaded.recipe.teachers is not None
    return [_named_teacher(one, workspace, is_any_kind=is_any_kind) for one in teachers]


def _named_teacher(
    loaded: LoadedRecipe, workspace: Workspace, *, is_any_kind: bool
) -> RunFolder | None:
    spec = loaded.recipe.teacher
    assert spec is not None  # each of them has one
    if spec.run is None:
        return None
    run = find_run(str(spec.run), workspace.root)
    if not run.is_finished or (run.kind != "teacher" and not is_any_kind):
        raise RecipeError(
            f"{loaded.lines.where(('teacher', 'run'))}: {spec.run} is not a finished"
            f"{'' if is_any_kind else ' teacher'} run.\n"
            "  `kdedge runs` lists all runs; `kdedge teach` trains a teacher."
        )
    return run


def trained_teacher(model: RunModel) -> KnownTeacher:
    """A finished run as a teacher."""
    provenance = model.features_provenance, model.vectors_provenance
    return KnownTeacher(model, *provenance, run=model.run.name)


def open_teacher(run: RunFolder, parts: StudentParts) -> KnownTeacher:
    """Opens a finished run as a student's teacher, for the student's class list.

    Raises:
        RecipeError: its method cannot teach this student.
    """
    model = load_run(run, parts.setup.workspace, names=parts.setup.classes.names)
    if len(parts.setup.loaded.recipe.teacher_specs) == 1:
        check_has_class_vectors(model.setup.choice)
    return trained_teacher(model)


def known_teachers(
    named: Sequence[RunFolder | None], parts: StudentParts
) -> tuple[list[RunFolder | Job], list[KnownTeacher]]:
    """A student's teachers: the run of each, or the job that trains it; and the opened models.

    A run is one that the recipe names, or a finished one of the same job.

    Args:
        named: from `named_teachers`.
        parts: the student.

    Raises:
        RecipeError: the method of a finished run cannot teach this student.
    """
    workspace = parts.setup.workspace
    found: list[RunFolder | Job] = []
    known: list[KnownTeacher] = []
    for one, run in zip(teacher_recipes(parts.setup.loaded), named, strict=True):
        if run is None:
            job = teacher_job(one, workspace)
            run = workspace.group.on_rank0(partial(finished_run, workspace.root, job.key()))
            if run is None:
                found.append(job)
                known.append(_untrained_teacher(job))
                continue
        found.append(run)
        known.append(open_teacher(run, parts))
    return found, known


def _untrained_teacher(job: Job) -> KnownTeacher:
    """An untrained teacher, to try steps: they take as long as with a trained one."""
    provenance = features_provenance(job.setup, "untrained")
    return KnownTeacher(job.model(), provenance, provenance)
