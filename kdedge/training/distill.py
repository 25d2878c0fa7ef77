"""Distilling a student: a frozen teacher's answers on unlabeled images."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from kdedge.clip.image_backbone import AnyBackbone
from kdedge.config.load import LoadedRecipe
from kdedge.data.views import Augmentation
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import RecipeError
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import StoredTeacher, load_teacher, untrained_teacher
from kdedge.runs.weights import made_by
from kdedge.setup.backbone import cache_folder, load_student_backbone
from kdedge.setup.classes import Classes, load_classes
from kdedge.setup.images import Images, load_images, require_images
from kdedge.setup.labeled import images_to_measure, labeled_draws, validation_images
from kdedge.setup.method import MethodChoice, build_method, choose_method, settings_record
from kdedge.training.job.job import Job, LabeledImages
from kdedge.training.job.run_job import finished_run, run_job
from kdedge.training.job.trial import trial_steps
from kdedge.training.loop.heap import keep_freed_memory
from kdedge.training.teach import labeled_beside, teacher_job
from kdedge.training.teacher_store.fill import Shard, StoreFiller
from kdedge.training.teacher_store.images import teacher_of
from kdedge.training.teacher_store.store import TeacherStore, describe_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentParts:
    """What a student is made of beside its teacher, read before a teacher is trained.

    Attributes:
        choice: its method with its settings.
        classes: the class list.
        backbone: its frozen CLIP, or an image tower alone.
        images: unlabeled.
        labeled: labeled images beside them, if its method learns from both.
        test: what accuracy is measured on, if anything.
        validation: what an epoch may be chosen by, if anything.
    """

    choice: MethodChoice
    classes: Classes
    backbone: AnyBackbone
    images: Images
    labeled: LabeledImages | None
    test: Images | None
    validation: Images | None


def student_parts(
    loaded: LoadedRecipe,
    *,
    cache: Path | None,
    device: torch.device,
    group: ProcessGroup = SINGLE_PROCESS,
) -> StudentParts:
    """Reads what the recipe says about its student."""
    recipe = loaded.recipe
    choice = choose_method(loaded, "student")
    if not choice.module.METHOD.needs_teacher:
        raise RecipeError("student.method does not learn from a teacher.\n  Use promptkd.")
    classes = load_classes(recipe)
    images = require_images(
        load_images(recipe, "unlabeled", classes, group=group),
        "unlabeled",
        "a student learns from unlabeled images",
    )
    return StudentParts(
        choice=choice,
        classes=classes,
        backbone=load_student_backbone(recipe, choice, device=device, cache=cache),
        images=images,
        labeled=labeled_beside(loaded, choice, classes, group),
        test=images_to_measure(loaded, "student", classes, group),
        validation=validation_images(loaded, "student", classes, labeled_draws(recipe), group),
    )


def store_filler(
    loaded: LoadedRecipe, teacher: StoredTeacher, parts: StudentParts, *, root: Path
) -> StoreFiller | None:
    """What keeps the teacher's features; None where the recipe runs the teacher in every step."""
    recipe, optim = loaded.recipe, parts.choice.optim
    spec = recipe.student
    assert spec is not None  # its parts were read from it
    if spec.views == 0:
        return None
    if teacher.backbone.preprocess != parts.backbone.preprocess:
        raise RecipeError(
            f"student.views is {spec.views}, and the teacher ({teacher.backbone.name}) and the"
            f" student ({parts.backbone.name}) prepare images in different ways: stored crops are"
            " those that both see.\n"
            "  Set student.views: 0, which runs the teacher in every step."
        )
    seed = recipe.seed if spec.view_seed is None else spec.view_seed
    augment = Augmentation(seed, optim.crop_scale_min, optim.flip, optim.strong_views)
    preprocess = teacher.backbone.preprocess
    description = describe_store(
        made_by=teacher.features_made_by,
        images=parts.images,
        preprocess=preprocess,
        augment=augment,
        precision=optim.precision,
    )
    store = TeacherStore(
        root / ".cache" / "teacher_store",
        description,
        indices=parts.images.indices,
        dim=teacher.class_vectors().shape[1],
        n_views=min(spec.views, optim.epochs),
    )
    return StoreFiller(
        store=store,
        teacher=teacher,
        source=parts.images.source,
        preprocess=preprocess,
        augment=augment,
        precision=optim.precision,
        device=teacher.backbone.device,
        n_workers=optim.n_workers,
    )


def student_job(
    loaded: LoadedRecipe,
    teacher: StoredTeacher,
    parts: StudentParts,
    *,
    filler: StoreFiller | None = None,
) -> Job:
    """Makes ready to distill the recipe's student from a teacher, or from its stored features."""
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
        labeled=parts.labeled,
        test=parts.test,
        validation=parts.validation,
        made_by=vectors_made_by,
        sources={"teacher": teacher.stored.made_by},
        teacher_run=teacher.run_name,
        view_seed=_own_view_seed(loaded),
        filler=filler,
    )


def _own_view_seed(loaded: LoadedRecipe) -> int | None:
    """The seed of the views, where it is another than the recipe's."""
    spec = loaded.recipe.student
    seed = None if spec is None else spec.view_seed
    return None if seed == loaded.recipe.seed else seed


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
    loaded: LoadedRecipe,
    parts: StudentParts,
    *,
    root: Path,
    device: torch.device,
    resume: bool,
    may_train: bool = True,
    group: ProcessGroup = SINGLE_PROCESS,
) -> RunFolder:
    """A teacher run that was trained from the same parts, or a new one.

    Before a new one is trained, the student takes a trial step beside it: what is wrong with the
    student is said now and not after hours of training its teacher.

    Raises:
        RecipeError: there is none, and none may be trained here.
    """
    job = teacher_job(loaded, cache=cache_folder(root), device=device, group=group)
    found = group.on_rank0(lambda: finished_run(root, job.key()))
    if found is not None:
        log.info("Using the teacher of %s, trained from the same parts.", found.path)
        return found
    if not may_train:
        raise RecipeError(
            f"{root} has no finished teacher of this recipe, and each shard would train its own.\n"
            "  Run `kdedge teach` without --shard first, or name a finished run as teacher.run."
        )
    record = settings_record(job.choice)
    trial_teacher = untrained_teacher(job.method, job.backbone, job.classes, record)
    trial_steps(student_job(loaded, trial_teacher, parts), 1, group=group)
    log.info("Training the teacher first.")
    return run_job(job, root=root, resume=resume, group=group)


def distill(
    loaded: LoadedRecipe,
    *,
    root: Path,
    device: torch.device,
    resume: bool = False,
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[RunFolder, RunFolder]:
    """Trains the recipe's student, and its teacher first where there is none.

    Args:
        loaded: the recipe.
        root: folder of all runs.
        device: where to train.
        resume: go on with interrupted runs of the same teacher and student.
        group: those that train together; they share out the filling of a teacher store.

    Returns:
        The teacher's run and the student's.
    """
    teacher_run, teacher, parts = _teacher_and_parts(
        loaded, root=root, device=device, resume=resume, group=group
    )
    filler = store_filler(loaded, teacher, parts, root=root)
    job = student_job(loaded, teacher, parts, filler=filler)
    if device.type == "cpu":
        keep_freed_memory()
    return teacher_run, run_job(job, root=root, resume=resume, group=group)


def store_features(
    loaded: LoadedRecipe,
    *,
    root: Path,
    device: torch.device,
    resume: bool = False,
    shard: Shard = (1, 1),
    group: ProcessGroup = SINGLE_PROCESS,
) -> tuple[RunFolder, TeacherStore]:
    """Fills the teacher store that the recipe's distillation reads, or a shard of it.

    The teacher is trained first where there is none, but not in one of several shards. Several
    processes share the work.

    Returns:
        The teacher's run and its store.

    Raises:
        RecipeError: the recipe stores nothing.
    """
    student = loaded.recipe.student
    if student is None or student.views == 0:
        raise RecipeError(
            "student.views is 0: the teacher runs in every step, and nothing is stored.\n"
            "  Set it to the crops of each image that are to be stored: --set student.views=4."
        )
    run, teacher, parts = _teacher_and_parts(
        loaded,
        root=root,
        device=device,
        resume=resume,
        may_train=shard[1] == 1,
        group=group,
    )
    filler = store_filler(loaded, teacher, parts, root=root)
    assert filler is not None  # as views is not 0
    filler.fill(shard)
    return run, filler.store


def _teacher_and_parts(
    loaded: LoadedRecipe,
    *,
    root: Path,
    device: torch.device,
    resume: bool,
    group: ProcessGroup,
    may_train: bool = True,
) -> tuple[RunFolder, StoredTeacher, StudentParts]:
    """The teacher, trained where there is none, and what the student is made of beside it."""
    cache = cache_folder(root)
    run = named_teacher(loaded, root)
    parts = student_parts(loaded, cache=cache, device=device, group=group)
    if run is None:
        run = made_teacher(
            loaded,
            parts,
            root=root,
            device=device,
            resume=resume,
            may_train=may_train,
            group=group,
        )
    return run, load_teacher(run, parts.classes, device=device, cache=cache), parts
