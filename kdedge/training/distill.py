"""Distilling a student: a frozen teacher's answers on unlabeled images."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from kdedge.config.load import LoadedRecipe
from kdedge.errors import RecipeError
from kdedge.methods._protocol import Method
from kdedge.training.fit import Job, run_job
from kdedge.training.parts import (
    Classes,
    choose_method,
    load_classes,
    load_images,
    load_role_backbone,
    require_images,
)
from kdedge.training.runs import RunFolder, find_run
from kdedge.training.teach import cache_folder, same_preprocessing, teacher_job, validation_images
from kdedge.training.teachers import StoredTeacher, find_teacher, load_teacher

log = logging.getLogger(__name__)


def ensure_teacher(
    loaded: LoadedRecipe, *, root: Path, device: torch.device, resume: bool
) -> RunFolder:
    """The recipe's teacher run: the one it names, one that was trained from the same parts, or a new one."""
    spec = loaded.recipe.teacher
    if spec is None:
        raise RecipeError(
            "The recipe has no teacher, and a student learns from one.\n  Add a teacher section."
        )
    if spec.run is not None:
        run = find_run(str(spec.run), root)
        if run.kind != "teacher" or not run.is_finished:
            raise RecipeError(f"teacher.run: {spec.run} is not a finished teacher run.")
        return run
    job = teacher_job(loaded, cache=cache_folder(root), device=device)
    found = find_teacher(root, job.key())
    if found is not None:
        log.info("Using the teacher of %s, trained from the same parts.", found.path)
        return found
    log.info("Training the teacher first.")
    return run_job(job, root=root, resume=resume)


def student_job(
    loaded: LoadedRecipe, teacher: StoredTeacher, *, cache: Path | None, classes: Classes
) -> Job:
    """Makes ready to distill the recipe's student from a teacher."""
    recipe = loaded.recipe
    choice = choose_method(loaded, "student")
    device = teacher.backbone.device
    images = require_images(
        load_images(recipe, "unlabeled", classes),
        "unlabeled",
        "a student learns from unlabeled images",
    )
    backbone = load_role_backbone(recipe, "student", device=device, cache=cache)
    same_preprocessing(teacher.backbone, backbone)
    method: Method = choice.module.Method.build(
        backbone,
        classes.names,
        choice.settings,
        template=classes.template,
        train_classes=classes.labeled,
        teacher=teacher,
        generator=torch.Generator().manual_seed(recipe.seed),
    )
    return Job(
        role="student",
        loaded=loaded,
        choice=choice,
        classes=classes,
        backbone=backbone,
        method=method,
        images=images,
        labels=None,
        test=load_images(recipe, "test", classes),
        validation=validation_images(loaded, "student", classes),
        made_by=lambda: teacher.stored.made_by,
        sources={"teacher": teacher.stored.made_by},
        teacher_run=teacher.run_name,
    )


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
    if not choose_method(loaded, "student").module.Method.needs_teacher:
        raise RecipeError("student.method does not learn from a teacher.\n  Use promptkd.")
    teacher_run = ensure_teacher(loaded, root=root, device=device, resume=resume)
    classes = load_classes(loaded.recipe)
    cache = cache_folder(root)
    teacher = load_teacher(teacher_run, classes, device=device, cache=cache)
    job = student_job(loaded, teacher, cache=cache, classes=classes)
    return teacher_run, run_job(job, root=root, resume=resume)
