"""A student's parts, and its job: what it learns from its teacher on unlabeled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdedge.config.load import LoadedRecipe
from kdedge.config.targets_spec import TargetsSpec
from kdedge.data.views import Augmentation
from kdedge.errors import RecipeError
from kdedge.runs.model import RunModel
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.setup.method import MethodChoice, check_has_class_vectors, choose_method
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.sizes import check_sizes
from kdedge.setup.teachers import names_teacher_run, teacher_recipes
from kdedge.setup.workspace import Workspace
from kdedge.training.elsewhere import open_role, open_run
from kdedge.training.held_out import held_out_of
from kdedge.training.job.job import HeldOut, Job, LabeledImages, Teaching, TrainingData
from kdedge.training.job.key import n_stored_views
from kdedge.training.pseudo_labels.transductive import TransductiveLabels
from kdedge.training.teach import labeled_beside, teacher_setup
from kdedge.training.teacher_input import as_prepared_for
from kdedge.training.teacher_store.fill import FeatureModel, StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.training.teachers.ensemble import Ensemble
from kdedge.training.teachers.known import KnownTeacher
from kdedge.training.teachers.open import open_ensemble
from kdedge.workers.protocol import Share


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
    if not choice.module.METHOD.needs_teacher:
        raise RecipeError(
            f"student.method is {choice.name}, which does not learn from a teacher.\n"
            "  Set student.method: promptkd."
        )
    _check_targets(loaded, choice)
    setup = set_up_role(loaded, "student", workspace, choice=choice)
    teachers = teacher_recipes(loaded)
    trained = [teacher_setup(one, workspace) for one in teachers if not names_teacher_run(one)]
    if trained and not names_teacher_run(teachers[0]):
        check_has_class_vectors(trained[0].choice)
    check_sizes(*trained, setup)
    images = RecipeData(loaded.recipe, setup.classes, workspace)
    unlabeled = images.require("unlabeled", "a student learns from unlabeled images")
    labeled = labeled_beside(setup, images)  # before validation images: the order of draws matters
    held_out = held_out_of(setup, images, TrainingData(unlabeled, labeled=labeled))
    return StudentParts(setup, unlabeled, held_out, labeled)


def _check_targets(loaded: LoadedRecipe, choice: MethodChoice) -> None:
    """Refuses soft labels that nothing would read.

    Raises:
        RecipeError: the student's losses compare no class probabilities.
    """
    spec = loaded.recipe.student
    if spec is None or spec.targets is None:
        return
    if not choice.settings.reads_targets:
        raise RecipeError(
            f"{loaded.lines.where(('student', 'targets'))}: student.targets has no effect:"
            f" {choice.name} with its losses reads no class probabilities.\n"
            "  Add the loss kl to student.settings.losses, or leave student.targets out."
        )


def student_job(parts: StudentParts, teaching: Teaching) -> Job:
    """The job that trains a student from a teacher, or from the teacher's stored features."""
    data = TrainingData(images=parts.images, labeled=parts.labeled)
    return Job(parts.setup, data, parts.held_out, teaching)


def teaching_of(known: Sequence[KnownTeacher], parts: StudentParts) -> Teaching:
    """Teaching by one teacher or several, with their stored features if the recipe stores them.

    Args:
        known: the teachers of the recipe that are models, in its order.
        parts: the student.
    """
    first = known[0]
    setup = parts.setup
    ensemble = _ensemble_of(known, parts)
    fillers = [_store_filler(one, parts, is_single=ensemble is None) for one in known]
    spec, labels = setup.loaded.recipe.student, None
    if spec is not None and spec.targets is not None:
        labels = TransductiveLabels(spec.targets, setup, parts.images, first, ensemble)
    return Teaching(
        first.model,
        first.vectors_provenance,
        first.run,
        tuple(filler for filler in fillers if filler is not None),
        ensemble,
        labels,
    )


def labels_by(
    known: Sequence[KnownTeacher], parts: StudentParts, spec: TargetsSpec
) -> TransductiveLabels:
    """Soft labels of a student's unlabeled images, by the probabilities of its teachers."""
    ensemble = _ensemble_of(known, parts)
    return TransductiveLabels(spec, parts.setup, parts.images, known[0], ensemble)


def _ensemble_of(known: Sequence[KnownTeacher], parts: StudentParts) -> Ensemble | None:
    """The teachers together; None for a single one."""
    if len(parts.setup.loaded.recipe.teacher_specs) == 1:
        return None
    return open_ensemble(known, parts.setup, parts.images, parts.held_out.test)


def _store_filler(
    known: KnownTeacher, parts: StudentParts, *, is_single: bool
) -> StoreFiller | None:
    """Stores a teacher's features; None if the recipe runs the teacher in every step."""
    setup, teacher = parts.setup, known.model
    recipe, optim = setup.loaded.recipe, setup.choice.optim
    spec = recipe.student
    assert spec is not None  # its parts were read from it
    if spec.views == 0:
        return None
    prepares = setup.backbone.preprocess
    if is_single and teacher.preprocess != prepares:
        raise RecipeError(
            f"student.views is {spec.views}, but the teacher ({teacher.setup.backbone.name}) and"
            f" the student ({setup.backbone.name}) preprocess images differently, so they cannot"
            " share stored crops.\n"
            "  Set student.views: 0 to run the teacher in every step."
        )
    seed = recipe.seed if spec.view_seed is None else spec.view_seed
    augment = Augmentation(seed, optim.crop_scale_min, optim.flip, optim.strong_views)
    description = describe_store(
        provenance=known.features_provenance,
        images=parts.images,
        preprocess=prepares,
        augment=augment,
        precision=optim.precision,
    )
    store = TeacherStore(
        setup.workspace.teacher_stores,
        description,
        indices=parts.images.indices,
        dim=known.dim,
        n_views=n_stored_views(recipe, setup.choice),
        digests=parts.images.digests,
    )
    return StoreFiller(
        store=store,
        teacher=as_prepared_for(setup.backbone, teacher),
        source=parts.images.source,
        augment=augment,
        precision=optim.precision,
        n_workers=optim.n_workers,
        opens=_opens(known, setup),
        workers=setup.workspace.workers,
    )


def _opens(known: KnownTeacher, student: RoleSetup) -> Callable[[Share], FeatureModel] | None:
    """Opens a student's teacher in another process; None where it is not trained."""
    if not isinstance(known.model, RunModel):
        return None
    run, root = known.model.run.path.absolute(), student.workspace.root.absolute()
    return partial(_open_prepared, student.loaded, run, student.classes.names, root)


def _open_prepared(
    loaded: LoadedRecipe, run: Path, names: Sequence[str], root: Path, share: Share
) -> FeatureModel:
    student = open_role(loaded, "student", root, share)
    return as_prepared_for(student.backbone, open_run(run, names, root, share))
