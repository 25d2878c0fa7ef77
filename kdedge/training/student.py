"""A student's job: its teacher, and the unlabeled images from which it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from kdedge.config.load import LoadedRecipe
from kdedge.errors import RecipeError
from kdedge.loading.decoding import Preparation
from kdedge.methods.base import Teacher
from kdedge.runs.find import find_run, newest_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel, load_teacher
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.method import (
    check_has_class_vectors,
    check_needs_no_vectors,
    recipe_uses_labels,
)
from kdedge.setup.role import RoleSetup, check_sizes, set_up_role
from kdedge.setup.workspace import Workspace
from kdedge.training.file_teacher import FileTeacher
from kdedge.training.job import (
    Job,
    n_stored_views,
    validation_images,
    with_measured_images,
)
from kdedge.training.output_store.fill import StoreFiller
from kdedge.training.output_store.store import OutputStore
from kdedge.training.teacher import teacher_job, teacher_setup, with_labels


def student_job(loaded: LoadedRecipe, workspace: Workspace) -> tuple[Job, Job | None]:
    """The job of the recipe's student with its teacher, and the job that trains a missing teacher.

    The teacher is the recipe's file, the run that it names, or a finished run of the teacher's job.
    If that job has to run first, the student's has the untrained teacher, with which trial steps
    take as long as with the trained one.

    Raises:
        RecipeError: the teacher is no finished run, or cannot teach this student.
        DataError: the file is wrong, or lacks an image.
    """
    run = find_named_teacher(loaded, workspace)  # raises errors of the teacher first
    if loaded.recipe.data.pseudo_labels is not None and not recipe_uses_labels(loaded):
        raise RecipeError(
            "Neither teacher nor student learns from labels, such as those of data.pseudo_labels.\n"
            "  Set student.settings.labeled_weight: 1.0, or leave data.pseudo_labels out."
        )
    student = _job_without_teacher(loaded, workspace)
    file = loaded.recipe.needed_teacher().file
    if file is not None:
        return with_teacher(student, _file_teacher(file, student)), None
    found = run or teacher_run_or_job(loaded, workspace)
    if isinstance(found, Job):
        return with_teacher(student, found.model()), found
    return with_teacher_run(found, student), None


def teacher_run_or_job(loaded: LoadedRecipe, workspace: Workspace) -> RunFolder | Job:
    """A finished run of the job that trains the recipe's teacher, or that job.

    Raises:
        RecipeError: the teacher is a file.
    """
    job = teacher_job(loaded, workspace)
    return workspace.group.on_rank0(partial(newest_run, workspace.root, key=job.key())) or job


def _job_without_teacher(loaded: LoadedRecipe, workspace: Workspace) -> Job:
    """The student's job, still without its teacher."""
    setup = set_up_role(loaded, "student", workspace)
    if setup.module.METHOD.student_data_needs is None:
        raise RecipeError(
            f"student.method is {setup.method_name}, which does not learn from a teacher.\n"
            "  Set student.method: promptkd."
        )
    setups = [setup]
    teacher = loaded.recipe.teacher
    if teacher is not None and teacher.is_trained:
        setups.insert(0, teacher_setup(loaded, workspace))
        _check_teacher_fits(setups[0], setup)
    check_sizes(*((part.loaded, part.role, part.backbone.sizes) for part in setups))
    unlabeled = setup.images.require("unlabeled", "a student learns from unlabeled images")
    job = Job(setup, unlabeled=unlabeled)
    return with_measured_images(with_labels(job) if setup.data_needs.labels else job)


def with_teacher(student: Job, teacher: Teacher) -> Job:
    """The student's job with its teacher, and with a teacher store if the recipe has `views`."""
    filler = None
    if student.setup.recipe.needed_student().views:
        assert isinstance(teacher, MethodModel)  # a file is refused with `views`
        filler = _store_filler(teacher, student)
    return replace(student, teacher=teacher, filler=filler)


def one_pass_job(student: Job) -> Job | None:
    """The ridge student that `student.one_pass_first` asks for; None if it does not apply.

    Raises:
        RecipeError: some validation images, which choose one of the two students, are test images.
        DataError: the validation images have no image of a labeled class.
    """
    loaded = student.setup.loaded
    teacher = student.teacher
    spec = loaded.recipe.needed_student()
    # With these settings, the ridge student would be larger than the trained one
    is_reduced = bool({"depth", "merge_tokens"} & spec.settings.keys())
    # The teacher did not learn from these labels, so agreement with it judges no student that did
    is_unjudged = student.setup.data_needs.labels and loaded.recipe.data.validation is None
    if not spec.one_pass_first or student.setup.is_closed_form or is_reduced or is_unjudged:
        return None
    if loaded.recipe.data.validation is not None:
        # Raises errors before the training
        validation_images(student.setup.images, student.labeled, student.test)
    outputs = "features" if student.setup.settings.classifier == "teacher_vectors" else "logits"
    other = {"method": "ridge", "settings": {"outputs": outputs}, "optim": None}
    recipe = loaded.recipe.model_copy(update={"student": spec.model_copy(update=other)})
    assert teacher is not None
    job = _job_without_teacher(replace(loaded, recipe=recipe), student.setup.workspace)
    return with_teacher(job, teacher)


def _check_teacher_fits(teacher: RoleSetup, student: RoleSetup) -> None:
    """Checks that a teacher can teach a student.

    Raises:
        RecipeError: the teacher computes logits of its own; or the student needs class vectors, but
            the teacher has none; or the teacher was not trained on every class, or takes larger
            images.
    """
    check_has_class_vectors(teacher, "teach a student")
    given = student.backbone.preprocess.size_px
    needed = teacher.backbone.preprocess.size_px
    # The stored features of a closed-form student are of images in the teacher's own size
    has_own_size = student.is_closed_form and student.recipe.needed_student().views
    if needed > given and not has_own_size:
        raise RecipeError(
            f"The teacher takes images of {needed} pixels, and student {student.backbone.name} of"
            f" {given}.\n"
            "  Both get the same crop: choose a teacher with the student's image size or less."
        )
    if teacher.settings.classifier == "feature_logits":
        check_needs_no_vectors(student, f"{teacher.method_name}, which gives logits")
    check_predicts(teacher, student.classes.names)


def check_predicts(model: RoleSetup, names: Sequence[str]) -> None:
    """Refuses a model that cannot predict every class.

    Raises:
        RecipeError: it predicts only the classes that it was trained on, and one is not of them.
    """
    known = {model.classes.names[label] for label in model.train_classes}
    unknown = [name for name in names if name not in known]
    if unknown and model.settings.classifier == "feature_logits":
        raise RecipeError(
            f"{model.method_name} was trained on {len(known)} of {len(names)} classes, without"
            f" {unknown[0]!r}: it cannot predict the others.\n"
            "  Choose a method with class vectors, such as promptsrc or zeroshot, or set"
            " data.split: all."
        )


def _file_teacher(file: Path, student: Job) -> FileTeacher:
    """A file of probabilities as a student's teacher.

    Raises:
        RecipeError: the student needs class vectors or image features of its teacher.
        DataError: the file is wrong, or lacks an image.
    """
    setup = student.setup
    recipe = student.setup.recipe
    check_needs_no_vectors(setup, f"{file.name}, a file of probabilities")
    if recipe.needed_student().views:
        raise RecipeError(
            f"{setup.loaded.lines.where(('student', 'views'))}: student.views needs the image"
            " features of a teacher, but the teacher is a file of probabilities.\n"
            "  Leave student.views out."
        )
    held_out = setup.images.held_out()
    held_out_indices = () if held_out is None else held_out.indices
    images = student.training_images
    pool = images.only(sorted({*images.indices, *held_out_indices}))
    return FileTeacher(file, setup.classes, pool)


def find_named_teacher(loaded: LoadedRecipe, workspace: Workspace) -> RunFolder | None:
    """The finished run of any role that the recipe names as its teacher, or None.

    Raises:
        RecipeError: there is no such run, or the recipe has no teacher section.
    """
    spec = loaded.recipe.needed_teacher()
    if spec.run is None:
        return None
    run = find_run(str(spec.run), workspace.root)
    if not run.is_finished:
        raise RecipeError(
            f"{loaded.lines.where(('teacher', 'run'))}: {spec.run} is not a finished run.\n"
            "  `kdedge runs` lists all runs; `kdedge teach` trains a teacher."
        )
    return run


def with_teacher_run(run: RunFolder, student: Job) -> Job:
    """The student's job with a finished run as its teacher; see `with_teacher`.

    Raises:
        RecipeError: the run's method cannot teach this student.
    """
    setup = student.setup
    model = load_teacher(run, setup.workspace, setup.recipe, setup.classes.names)
    _check_teacher_fits(model.setup, setup)
    return with_teacher(student, model)


def _store_filler(teacher: MethodModel, student: Job) -> StoreFiller:
    """The filler of the teacher store for a student."""
    setup = student.setup
    images = student.training_images
    recipe = setup.recipe
    optim = setup.optim
    # A closed-form student and its teacher get images as in evaluation, without views
    is_closed_form = setup.is_closed_form
    preprocess = teacher.preprocess if is_closed_form else setup.backbone.preprocess
    augment = None if is_closed_form else student.augmentation
    dim = teacher.setup.backbone.embed_dim
    gives_logits = teacher.setup.settings.classifier == "feature_logits"
    if teacher.setup.role == "student" or gives_logits:
        dim = teacher.class_vectors().shape[1]
    store = OutputStore(
        setup.workspace.root / ".cache" / "teacher_store",
        Preparation(preprocess, augment),
        features_hash=teacher.features_hash,
        precision=optim.precision,
        digests={i: images.digests[i] for i in images.indices},
        dim=dim,
        n_views=n_stored_views(recipe, setup),
    )
    return StoreFiller(
        store,
        teacher,
        partial(_teacher_features, preprocess),
        images.source,
        n_workers=optim.n_workers,
        ray_workers=setup.workspace.ray_workers,
        group=setup.workspace.group,
    )


def _teacher_features(preprocess: Preprocess, teacher: MethodModel, images: Tensor) -> Tensor:
    return teacher.teacher_features(images, preprocess)
