"""Distills a student from frozen teachers' logits on unlabeled images; trains missing teachers."""

from __future__ import annotations

import contextlib
import logging

from kdedge.config.load import LoadedRecipe
from kdedge.errors import DataError, RecipeError
from kdedge.progress import working
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_evaluation
from kdedge.setup.workspace import Workspace
from kdedge.training.find_teachers import known_teachers, named_teachers, open_teacher
from kdedge.training.job.job import Job
from kdedge.training.job.trial import trial_steps
from kdedge.training.loop.heap import keep_freed_memory
from kdedge.training.run_job import run_job
from kdedge.training.student import StudentParts, student_job, student_parts, teaching_of
from kdedge.training.teacher_store.fill import Shard
from kdedge.training.teacher_store.store import TeacherStore
from kdedge.training.teachers.known import KnownTeacher

log = logging.getLogger(__name__)


def distill(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False
) -> tuple[tuple[RunFolder, ...], RunFolder]:
    """Trains the recipe's student, and first the teachers that are missing.

    Args:
        loaded: the recipe.
        workspace: where the command works; its processes fill a teacher store together.
        resume: continue interrupted runs of the same teachers and student.

    Returns:
        The teachers' runs, in their order, and the student's.
    """
    runs, known, parts = teachers_and_parts(loaded, workspace, resume=resume)
    job = student_job(parts, teaching_of(known, parts))
    if workspace.device.type == "cpu":
        keep_freed_memory()
    stage = f"Student {len(runs) + 1}/{len(runs) + 1}"
    return tuple(runs), _run_stage(stage, job, resume=resume)


def store_features(
    loaded: LoadedRecipe,
    workspace: Workspace,
    *,
    resume: bool = False,
    shard: Shard = (1, 1),
) -> tuple[tuple[RunFolder, ...], list[TeacherStore]]:
    """Fills the teacher stores that the recipe's distillation reads, or one shard of each.

    Trains missing teachers first, but not if there are several shards. Processes that run at the
    same time share the work.

    Returns:
        The teachers' runs and their stores.

    Raises:
        RecipeError: student.views is 0, so that nothing is stored.
    """
    student = loaded.recipe.student
    if student is None or student.views == 0:
        raise RecipeError(
            "student.views is 0: the teacher runs in every step, and nothing is stored.\n"
            "  Set it to the number of crops to store of each image, for example --set"
            " student.views=4."
        )
    may_train = shard[1] == 1
    runs, known, parts = teachers_and_parts(loaded, workspace, resume=resume, may_train=may_train)
    fillers = teaching_of(known, parts).fillers
    for filler in fillers:
        filler.fill(shard)
    return tuple(runs), [filler.store for filler in fillers]


def teachers_and_parts(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool, may_train: bool = True
) -> tuple[list[RunFolder], list[KnownTeacher], StudentParts]:
    """The teachers' runs, trained if there are none, the opened teachers, and the student's parts.

    Before a teacher is trained, runs one student step, so that the student's errors surface.

    Raises:
        RecipeError: there is no finished teacher, and `may_train` is false.
    """
    named = named_teachers(loaded, workspace)
    parts = student_parts(loaded, workspace)
    found, known = known_teachers(named, parts)
    stages = [f"Teacher {number}/{len(found) + 1}" for number in range(1, len(found) + 1)]
    for stage, one, name in zip(stages, found, named, strict=True):
        if isinstance(one, RunFolder):
            why = "which the recipe names" if name else "trained with the same settings and data"
            log.info("%s: using %s, %s%s.", stage, one.path, why, _reached(one))
    runs = [one for one in found if isinstance(one, RunFolder)]
    if len(runs) == len(found):
        return runs, known, parts
    if not may_train:
        raise RecipeError(
            f"{workspace.root} has no finished teacher for this recipe, and each shard would train"
            " its own.\n"
            "  Run `kdedge teach` without --shard first, or set teacher.run to a finished run."
        )
    with working("trying a step of the student"):
        trial_steps(student_job(parts, teaching_of(known, parts)), 1)
    runs = [
        _run_stage(stage, one, resume=resume) if isinstance(one, Job) else one
        for stage, one in zip(stages, found, strict=True)
    ]
    return runs, [open_teacher(run, parts) for run in runs], parts


def _run_stage(stage: str, job: Job, *, resume: bool) -> RunFolder:
    """Trains one of the two models of a distillation, with a log line before and after."""
    is_trained = job.data.pool is not None or job.method.trainable_parameters()
    what = "training %s on %s." if is_trained else "%s on %s, which needs no training."
    log.info(f"%s: {what}", stage, job.choice.name, job.setup.backbone.name)
    run = run_job(job, resume=resume)
    log.info("%s done%s.", stage, _reached(run))
    return run


def _reached(run: RunFolder) -> str:
    """A run's accuracy for a message; empty if it has none or the record is damaged."""
    result = None
    with contextlib.suppress(DataError):  # reported by the table that follows
        result = read_evaluation(run).get(run.kind)
    if result is None:
        return ""
    if result.harmonic_mean is None:
        return f": accuracy {result.all:.2f} %"
    return f": harmonic mean {result.harmonic_mean:.2f} %"
