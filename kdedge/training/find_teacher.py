"""Finds the teacher of a student: a run that its recipe names, a finished one, a missing one."""

from __future__ import annotations

from functools import partial

from kdedge.config.load import LoadedRecipe
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import load_run
from kdedge.runs.weights import features_provenance
from kdedge.setup.workspace import Workspace
from kdedge.training.job.job import Job
from kdedge.training.run_job import finished_run
from kdedge.training.student import StudentParts, check_teaches, file_teacher
from kdedge.training.teach import teacher_job
from kdedge.training.teachers import AnyTeacher, ModelTeacher


def named_teacher(loaded: LoadedRecipe, workspace: Workspace) -> RunFolder | None:
    """The finished run, of any kind, that the recipe names as its teacher; None if it names none.

    Raises:
        RecipeError: there is no such run, or the recipe has no teacher section.
    """
    spec = loaded.recipe.teacher
    if spec is None:
        raise RecipeError(
            "The recipe has no teacher section, but a student learns from a teacher.\n  Add one."
        )
    if spec.run is None:
        return None
    run = find_run(str(spec.run), workspace.root)
    if not run.is_finished:
        raise RecipeError(
            f"{loaded.lines.where(('teacher', 'run'))}: {spec.run} is not a finished run.\n"
            "  `kdedge runs` lists all runs; `kdedge teach` trains a teacher."
        )
    return run


def open_teacher(run: RunFolder, parts: StudentParts) -> ModelTeacher:
    """Opens a finished run as a student's teacher, for the student's class list.

    Raises:
        RecipeError: its method cannot teach this student.
    """
    model = load_run(run, parts.setup.workspace, names=parts.setup.classes.names)
    check_teaches(model.setup, parts.setup)
    return ModelTeacher(model, model.features_provenance, model.vectors_provenance, run.name)


def find_teacher(
    named: RunFolder | None, parts: StudentParts
) -> tuple[RunFolder | Job | None, AnyTeacher]:
    """A student's teacher: its run, or the job that trains it, or None for a file; and opened.

    A run is the one that the recipe names, or a finished one of the same job. A teacher that is to
    be trained is opened untrained, to try steps: they take as long as with a trained one.

    Args:
        named: from `named_teacher`.
        parts: the student.

    Raises:
        RecipeError: the teacher cannot teach this student.
    """
    teacher = file_teacher(parts)
    if teacher is not None:
        return None, teacher
    if named is not None:
        return named, open_teacher(named, parts)
    workspace = parts.setup.workspace
    job = teacher_job(parts.setup.loaded, workspace)
    run = workspace.group.on_rank0(partial(finished_run, workspace.root, job.key()))
    if run is not None:
        return run, open_teacher(run, parts)
    provenance = features_provenance(job.setup, "untrained")
    return job, ModelTeacher(job.model(), provenance, provenance)
