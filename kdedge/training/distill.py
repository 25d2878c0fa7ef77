"""Distilling a student: a frozen teacher's answers on unlabeled images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from kdedge.clip.image_backbone import AnyBackbone
from kdedge.config.load import LoadedRecipe
from kdedge.errors import RecipeError
from kdedge.training.fit import Job, finished_run, run_job
from kdedge.training.parts import (
    Classes,
    Images,
    MethodChoice,
    build_method,
    choose_method,
    load_classes,
    load_images,
    load_student_backbone,
    require_images,
    settings_record,
)
from kdedge.training.runs import RunFolder, find_run
from kdedge.training.teach import cache_folder, teacher_job, validation_images
from kdedge.training.teacher_images import teacher_of
from kdedge.training.teachers import (
    StoredTeacher,
    load_teacher,
    made_by,
    untrained_teacher,
)
from kdedge.training.trial import trial_steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentParts:
    """What a student is made of beside its teacher, read before a teacher is trained.

    Attributes:
        choice: its method with its settings.
        classes: the class list.
        backbone: its frozen CLIP, or an image tower alone.
        images: unlabeled.
        test: what accuracy is measured on, if anything.
        validation: what an epoch may be chosen by, if anything.
    """

    choice: MethodChoice
    classes: Classes
    backbone: AnyBackbone
    images: Images
    test: Images | None
    validation: Images | None


def student_parts(
    loaded: LoadedRecipe, *, cache: Path | None, device: torch.device
) -> StudentParts:
    """Reads what the recipe says about its student."""
    recipe = loaded.recipe
    choice = choose_method(loaded, "student")
    if not choice.module.Method.needs_teacher:
        raise RecipeError("student.method does not learn from a teacher.\n  Use promptkd.")
    classes = load_classes(recipe)
    images = require_images(
        load_images(recipe, "unlabeled", classes),
        "unlabeled",
        "a student learns from unlabeled images",
    )
    return StudentParts(
        choice=choice,
        classes=classes,
        backbone=load_student_backbone(recipe, choice, device=device, cache=cache),
        images=images,
        test=load_images(recipe, "test", classes),
        validation=validation_images(loaded, "student", classes),
    )


def student_job(loaded: LoadedRecipe, teacher: StoredTeacher, parts: StudentParts) -> Job:
    """Makes ready to distill the recipe's student from a teacher."""
    method = build_method(
        parts.choice,
        parts.backbone,
        parts.classes,
        seed=loaded.recipe.seed,
        teacher=teacher_of(parts.backbone, teacher),
    )

    def vectors_made_by() -> str:
        if not parts.choice.settings.has_own_class_vectors:
            return teacher.stored.made_by
        record = settings_record(parts.choice)
        return made_by(parts.backbone, method.module, parts.classes, record)

    return Job(
        role="student",
        loaded=loaded,
        choice=parts.choice,
        classes=parts.classes,
        backbone=parts.backbone,
        method=method,
        images=parts.images,
        labels=None,
        test=parts.test,
        validation=parts.validation,
        made_by=vectors_made_by,
        sources={"teacher": teacher.stored.made_by},
        teacher_run=teacher.run_name,
    )


def named_teacher(loaded: LoadedRecipe, root: Path) -> RunFolder | None:
    """The finished run that the recipe names as its teacher; None where one is to be trained.

    Raises:
        RecipeError: there is no such run, or the recipe has no teacher at all.
    """
    spec = loaded.recipe.teacher
    if spec is None:
        raise RecipeError(
            "The recipe has no teacher, and a student learns from one.\n  Add a teacher section."
        )
    if spec.run is None:
        return None
    run = find_run(str(spec.run), root)
    if run.kind != "teacher" or not run.is_finished:
        raise RecipeError(
            f"{loaded.lines.where(('teacher', 'run'))}: teacher.run: {spec.run} is not a finished"
            " teacher run.\n"
            "  `kdedge show` says what a run is; `kdedge teach` makes a teacher."
        )
    return run


def made_teacher(
    loaded: LoadedRecipe, parts: StudentParts, *, root: Path, device: torch.device, resume: bool
) -> RunFolder:
    """A teacher run that was trained from the same parts, or a new one.

    Before a new one is trained, the student takes a trial step beside it: what is wrong with the
    student is said now and not after hours of training its teacher.
    """
    job = teacher_job(loaded, cache=cache_folder(root), device=device)
    found = finished_run(root, job.key())
    if found is not None:
        log.info("Using the teacher of %s, trained from the same parts.", found.path)
        return found
    record = settings_record(job.choice)
    trial_teacher = untrained_teacher(job.method, job.backbone, job.classes, record)
    trial_steps(student_job(loaded, trial_teacher, parts), 1)
    log.info("Training the teacher first.")
    return run_job(job, root=root, resume=resume)


def distill(
    loaded: LoadedRecipe, *, root: Path, device: torch.device, resume: bool = False
) -> tuple[RunFolder, RunFolder]:
    """Trains the recipe's student, and its teacher first where there is none.

    Args:
        loaded: the recipe.
        root: folder of all runs.
        device: where to train.
        resume: go on with interrupted runs of the same teacher and student.

    Returns:
        The teacher's run and the student's.
    """
    cache = cache_folder(root)
    teacher_run = named_teacher(loaded, root)
    parts = student_parts(loaded, cache=cache, device=device)
    if teacher_run is None:
        teacher_run = made_teacher(loaded, parts, root=root, device=device, resume=resume)
    teacher = load_teacher(teacher_run, parts.classes, device=device, cache=cache)
    return teacher_run, run_job(student_job(loaded, teacher, parts), root=root, resume=resume)
