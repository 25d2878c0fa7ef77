"""A student's parts, and its job: what it learns from its teacher on unlabeled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdedge.config.load import LoadedRecipe
from kdedge.data.images import Images
from kdedge.data.views import Augmentation
from kdedge.errors import RecipeError
from kdedge.runs.model import RunModel
from kdedge.setup.data import RecipeData
from kdedge.setup.method import (
    check_needs_no_vectors,
    choose_method,
    has_class_vectors,
)
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.sizes import check_sizes
from kdedge.setup.workspace import Workspace
from kdedge.training.elsewhere import open_role, open_run
from kdedge.training.held_out import held_out_of
from kdedge.training.job.job import HeldOut, Job, LabeledImages, Teaching, TrainingData
from kdedge.training.job.key import n_stored_views, own_view_seed
from kdedge.training.teach import labeled_beside, teacher_setup
from kdedge.training.teacher_input import as_prepared_for
from kdedge.training.teacher_store.fill import FeatureModel, StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.training.teachers import AnyTeacher, FileTeacher, ModelTeacher
from kdedge.workers import Share


@dataclass(frozen=True)
class StudentParts:
    """The student's parts other than its teacher. They are read before the teacher is trained.

    Attributes:
        setup: its method, classes and backbone.
        images: unlabeled training images.
        held_out: test and validation images.
        labeled: labeled training images, if its method learns from both kinds.
    """

    setup: RoleSetup
    images: Images
    held_out: HeldOut
    labeled: LabeledImages | None = None


def student_parts(loaded: LoadedRecipe, workspace: Workspace) -> StudentParts:
    """Reads the student's parts from the recipe."""
    choice = choose_method(loaded, "student")
    method = choice.module.METHOD
    if not (method.needs_teacher or method.sees_as_student):
        raise RecipeError(
            f"student.method is {choice.name}, which does not learn from a teacher.\n"
            "  Set student.method: promptkd."
        )
    setup = set_up_role(loaded, "student", workspace, choice=choice)
    teacher = loaded.recipe.teacher
    if teacher is not None and teacher.is_trained:
        trained = teacher_setup(loaded, workspace)
        check_teaches(trained, setup)
        spec = loaded.recipe.student
        # A stored answer is the teacher's to the image as it prepares it
        is_stored = choice.is_solved and spec is not None and spec.views > 0
        check_sizes(*([setup] if is_stored else [trained, setup]))
    else:
        check_sizes(setup)
    images = RecipeData(loaded.recipe, setup.classes, workspace)
    unlabeled = images.require("unlabeled", "a student learns from unlabeled images")
    labeled = labeled_beside(setup, images)  # before validation images: the order of draws matters
    held_out = held_out_of(setup, images, TrainingData(unlabeled, labeled=labeled))
    return StudentParts(setup, unlabeled, held_out, labeled)


def student_job(parts: StudentParts, teaching: Teaching) -> Job:
    """The job that trains a student from a teacher, or from the teacher's stored features."""
    data = TrainingData(images=parts.images, labeled=parts.labeled)
    return Job(parts.setup, data, parts.held_out, teaching)


def check_teaches(teacher: RoleSetup, student: RoleSetup) -> None:
    """Checks that a teacher has what its student asks of it.

    Raises:
        RecipeError: the student needs class vectors, and the teacher has none; or the teacher does
            not know every class.
    """
    if has_class_vectors(teacher.choice) and not teacher.choice.settings.gives_logits:
        return
    why = teacher.choice.module.Method.why_no_class_vectors
    check_needs_no_vectors(student.choice, f"{teacher.choice.name}, which {why}")
    known = {teacher.classes.names[label] for label in teacher.train_classes}
    unknown = [name for name in student.classes.names if name not in known]
    if unknown:
        raise RecipeError(
            f"The teacher, {teacher.choice.name}, was trained on {len(known)} of"
            f" {len(student.classes.names)} classes, without {unknown[0]!r}: it has no answer for"
            " the others.\n"
            "  Choose a teacher with class vectors, such as promptsrc or zeroshot, or set"
            " data.split: all."
        )


def file_teacher(parts: StudentParts) -> FileTeacher | None:
    """The file of probabilities that teaches; None where a model does.

    Raises:
        RecipeError: the student needs class vectors or image features of its teacher.
        DataError: the file is wrong, or lacks an image.
    """
    setup, recipe = parts.setup, parts.setup.loaded.recipe
    if recipe.teacher is None or recipe.teacher.file is None:
        return None
    check_needs_no_vectors(setup.choice, f"{recipe.teacher.file.name}, a file of probabilities")
    assert recipe.student is not None  # its parts were read from it
    if recipe.student.views:
        raise RecipeError(
            f"{setup.loaded.lines.where(('student', 'views'))}: student.views needs the image"
            " features of a teacher, but the teacher is a file of probabilities.\n"
            "  Leave student.views out."
        )
    held_out = RecipeData(recipe, setup.classes, setup.workspace).held_out()
    beside = () if held_out is None else held_out.indices
    pool = parts.images.only(sorted({*parts.images.indices, *beside}))
    return FileTeacher(recipe.teacher.file, setup.classes, pool)


def teaching_of(teacher: AnyTeacher, parts: StudentParts) -> Teaching:
    """Teaching by a teacher, with its stored features if the recipe stores them."""
    if isinstance(teacher, FileTeacher):
        return Teaching(teacher)
    spec = parts.setup.loaded.recipe.student
    assert spec is not None  # its parts were read from it
    return Teaching(
        teacher,
        _store_filler(teacher, parts) if spec.views else None,
    )


def _store_filler(teacher: ModelTeacher, parts: StudentParts) -> StoreFiller:
    """Stores a teacher's features."""
    setup = parts.setup
    recipe, optim = setup.loaded.recipe, setup.choice.optim
    # What is solved in one pass sees images as in evaluation, and so does its teacher
    is_solved = setup.choice.is_solved
    asked = teacher.model if is_solved else as_prepared_for(setup.backbone, teacher.model)
    own_seed = own_view_seed(recipe)
    seed = recipe.seed if own_seed is None else own_seed
    augment = None
    if not is_solved:
        augment = Augmentation(seed, optim.crop_scale_min, optim.flip, optim.strong_views)
    description = describe_store(
        provenance=teacher.features_provenance,
        images=parts.images,
        preprocess=asked.preprocess,
        augment=augment,
        precision=optim.precision,
    )
    store = TeacherStore(
        setup.workspace.teacher_stores,
        description,
        indices=parts.images.indices,
        dim=teacher.dim,
        n_views=n_stored_views(recipe, setup.choice),
        digests=parts.images.digests,
    )
    return StoreFiller(
        store=store,
        teacher=asked,
        source=parts.images.source,
        augment=augment,
        precision=optim.precision,
        n_workers=optim.n_workers,
        opens=_opens(teacher, setup),
        workers=setup.workspace.workers,
        group=setup.workspace.group,
    )


def _opens(teacher: ModelTeacher, student: RoleSetup) -> Callable[[Share], FeatureModel] | None:
    """Opens a student's teacher in another process; None where it is not trained."""
    if not isinstance(teacher.model, RunModel):
        return None
    run, root = teacher.model.run.path.absolute(), student.workspace.root.absolute()
    return partial(_open_prepared, student.loaded, run, student.classes.names, root)


def _open_prepared(
    loaded: LoadedRecipe, run: Path, names: Sequence[str], root: Path, share: Share
) -> FeatureModel:
    student, teacher = open_role(loaded, "student", root, share), open_run(run, names, root, share)
    if student.choice.is_solved:
        return teacher
    return as_prepared_for(student.backbone, teacher)
