"""Distilling a student: a frozen teacher's logits on unlabeled images."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass

from kdedge.config.load import LoadedRecipe
from kdedge.config.targets_spec import TargetsSpec
from kdedge.data.views import Augmentation
from kdedge.errors import DataError, RecipeError
from kdedge.progress import working
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel, RunModel, load_run
from kdedge.runs.results import read_evaluation
from kdedge.runs.weights import features_provenance
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.setup.method import MethodChoice, check_has_class_vectors, choose_method
from kdedge.setup.role import RoleSetup, set_up_role
from kdedge.setup.sizes import check_sizes
from kdedge.setup.workspace import Workspace
from kdedge.training.held_out import held_out_of
from kdedge.training.job.job import HeldOut, Job, LabeledImages, Teaching, TrainingData
from kdedge.training.job.key import n_stored_views
from kdedge.training.job.trial import trial_steps
from kdedge.training.loop.heap import keep_freed_memory
from kdedge.training.pseudo_labels.pool_features import TeacherOfPool
from kdedge.training.pseudo_labels.transductive import TransductiveLabels
from kdedge.training.run_job import finished_run, run_job
from kdedge.training.teach import labeled_beside, teacher_job, teacher_setup
from kdedge.training.teacher_store.fill import Shard, StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentParts:
    """What a student is made of beside its teacher, read before a teacher is trained.

    Attributes:
        setup: its method, classes and backbone.
        images: unlabeled.
        held_out: what it is measured on.
        labeled: labeled images beside the unlabeled ones, if its method learns from both.
    """

    setup: RoleSetup
    images: Images
    held_out: HeldOut
    labeled: LabeledImages | None = None


def student_parts(loaded: LoadedRecipe, workspace: Workspace) -> StudentParts:
    """Reads what the recipe says about its student."""
    choice = choose_method(loaded, "student")
    if not choice.module.METHOD.needs_teacher:
        raise RecipeError("student.method does not learn from a teacher.\n  Use promptkd.")
    _check_targets(loaded, choice)
    setup = set_up_role(loaded, "student", workspace, choice=choice)
    spec = loaded.recipe.teacher
    is_trained = spec is not None and spec.run is None
    check_sizes(*([teacher_setup(loaded, workspace)] if is_trained else []), setup)
    images = RecipeData(loaded.recipe, setup.classes, workspace)
    unlabeled = images.require("unlabeled", "a student learns from unlabeled images")
    labeled = labeled_beside(setup, images)  # before those of validation, as draws take turns
    held_out = held_out_of(setup, images, TrainingData(unlabeled, labeled=labeled))
    return StudentParts(setup, unlabeled, held_out, labeled)


def _check_targets(loaded: LoadedRecipe, choice: MethodChoice) -> None:
    """Refuses soft labels that nothing would read.

    Raises:
        RecipeError: the student's losses compare no class probabilities.
    """
    spec = loaded.recipe.student
    if spec is None or spec.targets is None or choice.settings.reads_targets:
        return
    raise RecipeError(
        f"{loaded.lines.where(('student', 'targets'))}: student.targets has no effect:"
        f" {choice.name} with its losses reads no class probabilities.\n"
        "  Add the loss kl to student.settings.losses, or leave student.targets out."
    )


def student_job(parts: StudentParts, teaching: Teaching) -> Job:
    """The training of a student by a teacher, or by its stored features."""
    data = TrainingData(images=parts.images, labeled=parts.labeled)
    return Job(parts.setup, data, parts.held_out, teaching)


def teaching_of(teacher: RunModel, parts: StudentParts) -> Teaching:
    """What a student learns from: a finished run, and its features where the recipe stores them."""
    provenance = teacher.features_provenance
    filler = _store_filler(teacher, provenance, parts)
    spec, labels = parts.setup.loaded.recipe.student, None
    if spec is not None and spec.targets is not None:
        labels = labels_by(teacher, parts, spec.targets)
    return Teaching(teacher, teacher.vectors_provenance, teacher.run.name, filler, labels)


def labels_by(teacher: RunModel, parts: StudentParts, spec: TargetsSpec) -> TransductiveLabels:
    """Soft labels of a student's unlabeled images, which begin with its teacher's answers."""
    dim, vectors = teacher.setup.backbone.embed_dim, teacher.vectors_provenance
    beginning = TeacherOfPool(teacher, dim, teacher.features_provenance, vectors)
    return TransductiveLabels(spec, parts.setup, parts.images, beginning)


def untrained_teaching(job: Job, parts: StudentParts) -> Teaching:
    """What a student would learn from a teacher that is not trained yet: a step costs the same."""
    teacher, provenance = job.model(), features_provenance(job.setup, "untrained")
    return Teaching(teacher, provenance, filler=_store_filler(teacher, provenance, parts))


def _store_filler(
    teacher: MethodModel | RunModel, provenance: str, parts: StudentParts
) -> StoreFiller | None:
    """What keeps the teacher's features; None where the recipe runs the teacher in every step."""
    setup = parts.setup
    recipe, optim = setup.loaded.recipe, setup.choice.optim
    spec = recipe.student
    assert spec is not None  # its parts were read from it
    if spec.views == 0:
        return None
    if teacher.preprocess != setup.backbone.preprocess:
        raise RecipeError(
            f"student.views is {spec.views}, and the teacher ({teacher.setup.backbone.name}) and"
            f" the student ({setup.backbone.name}) prepare images in different ways: stored crops"
            " are those that both see.\n"
            "  Set student.views: 0, which runs the teacher in every step."
        )
    seed = recipe.seed if spec.view_seed is None else spec.view_seed
    augment = Augmentation(seed, optim.crop_scale_min, optim.flip, optim.strong_views)
    description = describe_store(
        provenance=provenance,
        images=parts.images,
        preprocess=teacher.preprocess,
        augment=augment,
        precision=optim.precision,
    )
    store = TeacherStore(
        setup.workspace.teacher_stores,
        description,
        indices=parts.images.indices,
        dim=teacher.setup.backbone.embed_dim,
        n_views=n_stored_views(recipe, setup.choice),
    )
    return StoreFiller(
        store=store,
        teacher=teacher,
        source=parts.images.source,
        augment=augment,
        precision=optim.precision,
        n_workers=optim.n_workers,
    )


def named_teacher(loaded: LoadedRecipe, workspace: Workspace) -> RunFolder | None:
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
    run = find_run(str(spec.run), workspace.root)
    if run.kind != "teacher" or not run.is_finished:
        raise RecipeError(
            f"{loaded.lines.where(('teacher', 'run'))}: teacher.run: {spec.run} is not a finished"
            " teacher run.\n"
            "  `kdedge show` says what a run is; `kdedge teach` makes a teacher."
        )
    return run


def open_teacher(run: RunFolder, parts: StudentParts) -> RunModel:
    """A finished run as the teacher of a student, for the student's class list.

    Raises:
        RecipeError: its method has no class vectors.
    """
    teacher = load_run(run, parts.setup.workspace, names=parts.setup.classes.names)
    check_has_class_vectors(teacher.setup.choice)
    return teacher


def _train_teacher(
    loaded: LoadedRecipe, parts: StudentParts, *, resume: bool, may_train: bool
) -> RunFolder:
    """The teacher run of the recipe: a finished one from the same parts, or a new one.

    Runs one student step first, so that the student's errors surface before the teacher is trained.

    Raises:
        RecipeError: there is no finished run, and `may_train` is false.
    """
    workspace = parts.setup.workspace
    job = teacher_job(loaded, workspace)
    found = workspace.group.on_rank0(lambda: finished_run(workspace.root, job.key()))
    if found is not None:
        _say_used(found, "trained from the same parts")
        return found
    if not may_train:
        raise RecipeError(
            f"{workspace.root} has no finished teacher of this recipe, and each shard would train"
            " its own.\n"
            "  Run `kdedge teach` without --shard first, or name a finished run as teacher.run."
        )
    with working("trying a step of the student"):
        trial_steps(student_job(parts, untrained_teaching(job, parts)), 1)
    return _run_stage("Teacher 1/2", job, resume=resume)


def _run_stage(stage: str, job: Job, *, resume: bool) -> RunFolder:
    """Trains one of the two models of a distillation, and says so before and after."""
    is_trained = job.data.pool is not None or job.method.trainable_parameters()
    what = "training %s on %s." if is_trained else "%s on %s, which needs no training."
    log.info(f"%s: {what}", stage, job.choice.name, job.setup.backbone.name)
    run = run_job(job, resume=resume)
    log.info("%s done%s.", stage, _reached(run))
    return run


def _say_used(teacher: RunFolder, why: str) -> None:
    log.info("Teacher 1/2: %s is used, %s%s.", teacher.path, why, _reached(teacher))


def _reached(run: RunFolder) -> str:
    """A run's accuracy for a message; empty where it has none that can be read."""
    result = None
    with contextlib.suppress(DataError):  # the table after it says that the record is damaged
        result = read_evaluation(run).get(run.kind)
    if result is None:
        return ""
    if result.harmonic_mean is None:
        return f": accuracy {result.all:.2f} %"
    return f": harmonic mean {result.harmonic_mean:.2f} %"


def distill(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False
) -> tuple[RunFolder, RunFolder]:
    """Trains the recipe's student, and its teacher first where there is none.

    Args:
        loaded: the recipe.
        workspace: where the command works; its processes share the filling of a teacher store.
        resume: go on with interrupted runs of the same teacher and student.

    Returns:
        The teacher's run and the student's.
    """
    teacher, parts = teacher_and_parts(loaded, workspace, resume=resume)
    job = student_job(parts, teaching_of(teacher, parts))
    if workspace.device.type == "cpu":
        keep_freed_memory()
    return teacher.run, _run_stage("Student 2/2", job, resume=resume)


def store_features(
    loaded: LoadedRecipe,
    workspace: Workspace,
    *,
    resume: bool = False,
    shard: Shard = (1, 1),
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
    may_train = shard[1] == 1
    teacher, parts = teacher_and_parts(loaded, workspace, resume=resume, may_train=may_train)
    filler = teaching_of(teacher, parts).filler
    assert filler is not None  # as views is not 0
    filler.fill(shard)
    return teacher.run, filler.store


def teacher_and_parts(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool, may_train: bool = True
) -> tuple[RunModel, StudentParts]:
    """The teacher, trained where there is none, and what the student is made of beside it.

    Raises:
        RecipeError: there is no finished teacher, and `may_train` is false.
    """
    run = named_teacher(loaded, workspace)
    parts = student_parts(loaded, workspace)
    if run is None:
        run = _train_teacher(loaded, parts, resume=resume, may_train=may_train)
    else:
        _say_used(run, "named by teacher.run")
    return open_teacher(run, parts), parts
