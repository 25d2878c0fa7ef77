"""Distills a student from a frozen teacher's logits on unlabeled images."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdedge.config.load import LoadedRecipe
from kdedge.config.targets_spec import TargetsSpec
from kdedge.data.views import Augmentation
from kdedge.errors import DataError, RecipeError
from kdedge.progress import working
from kdedge.runs.find import find_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel, load_run
from kdedge.runs.results import read_evaluation
from kdedge.runs.weights import features_provenance
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
from kdedge.training.job.start import check_same_teacher, start_of
from kdedge.training.job.trial import trial_steps
from kdedge.training.loop.heap import keep_freed_memory
from kdedge.training.pseudo_labels.transductive import TransductiveLabels
from kdedge.training.run_job import finished_run, run_job
from kdedge.training.teach import labeled_beside, teacher_job, teacher_setup
from kdedge.training.teacher_input import as_prepared_for
from kdedge.training.teacher_store.fill import FeatureModel, Shard, StoreFiller
from kdedge.training.teacher_store.store import TeacherStore, describe_store
from kdedge.training.teachers.ensemble import Ensemble
from kdedge.training.teachers.known import KnownTeacher
from kdedge.training.teachers.open import open_ensemble
from kdedge.workers.protocol import Share

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentParts:
    """The student's parts other than its teacher. They are read before the teacher is trained.

    Attributes:
        setup: its method, classes and backbone.
        images: unlabeled training images.
        held_out: test and validation images.
        labeled: labeled training images, if its method learns from both kinds.
        start: the run whose student is compressed; None for a plain student.
    """

    setup: RoleSetup
    images: Images
    held_out: HeldOut
    labeled: LabeledImages | None = None
    start: RunModel | None = None


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
    return StudentParts(setup, unlabeled, held_out, labeled, start_of(setup))


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
    if parts.start is not None:
        check_same_teacher(parts.start, parts.setup, teaching)
    data = TrainingData(images=parts.images, labeled=parts.labeled)
    return Job(parts.setup, data, parts.held_out, teaching, parts.start)


def trained_teacher(model: RunModel) -> KnownTeacher:
    """A finished run as a teacher."""
    provenance = model.features_provenance, model.vectors_provenance
    return KnownTeacher(model, *provenance, run=model.run.name)


def untrained_teacher(job: Job) -> KnownTeacher:
    """An untrained teacher, to try steps: they take as long as with a trained one."""
    provenance = features_provenance(job.setup, "untrained")
    return KnownTeacher(job.model(), provenance, provenance)


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
            f"{loaded.lines.where(('teacher', 'run'))}: teacher.run: {spec.run} is not a finished"
            f"{'' if is_any_kind else ' teacher'} run.\n"
            "  `kdedge runs` lists all runs; `kdedge teach` trains a teacher."
        )
    return run


def open_teacher(run: RunFolder, parts: StudentParts) -> KnownTeacher:
    """Opens a finished run as a student's teacher, for the student's class list.

    Raises:
        RecipeError: its method cannot teach this student.
    """
    model = load_run(run, parts.setup.workspace, names=parts.setup.classes.names)
    if len(parts.setup.loaded.recipe.teacher_specs) == 1:
        check_has_class_vectors(model.setup.choice)
    return trained_teacher(model)


def _train_teachers(
    named: Sequence[RunFolder | None], parts: StudentParts, *, resume: bool, may_train: bool
) -> list[RunFolder]:
    """The teacher runs of the recipe: named ones, finished ones from the same parts, or new ones.

    Runs one student step first, so that the student's errors surface before a teacher is trained.

    Raises:
        RecipeError: there is no finished run, and `may_train` is false.
    """
    workspace = parts.setup.workspace
    n_stages = len(named) + 1
    runs: list[RunFolder | None] = []
    jobs: dict[int, Job] = {}
    for number, (one, run) in enumerate(
        zip(teacher_recipes(parts.setup.loaded), named, strict=True)
    ):
        stage = f"Teacher {number + 1}/{n_stages}"
        if run is not None:
            _say_used(stage, run, "which teacher.run names")
            runs.append(run)
            continue
        job = teacher_job(one, workspace)
        found = workspace.group.on_rank0(partial(finished_run, workspace.root, job.key()))
        if found is None:
            jobs[number] = job
        else:
            _say_used(stage, found, "trained with the same settings and data")
        runs.append(found)
    if jobs and not may_train:
        raise RecipeError(
            f"{workspace.root} has no finished teacher for this recipe, and each shard would train"
            " its own.\n"
            "  Run `kdedge teach` without --shard first, or set teacher.run to a finished run."
        )
    if jobs:
        known = [
            untrained_teacher(jobs[number]) if run is None else open_teacher(run, parts)
            for number, run in enumerate(runs)
        ]
        with working("trying a step of the student"):
            trial_steps(student_job(parts, teaching_of(known, parts)), 1)
    return [
        _run_stage(f"Teacher {number + 1}/{n_stages}", jobs[number], resume=resume)
        if run is None
        else run
        for number, run in enumerate(runs)
    ]


def _run_stage(stage: str, job: Job, *, resume: bool) -> RunFolder:
    """Trains one of the two models of a distillation, with a log line before and after."""
    is_trained = job.data.pool is not None or job.method.trainable_parameters()
    what = "training %s on %s." if is_trained else "%s on %s, which needs no training."
    log.info(f"%s: {what}", stage, job.choice.name, job.setup.backbone.name)
    run = run_job(job, resume=resume)
    log.info("%s done%s.", stage, _reached(run))
    return run


def _say_used(stage: str, teacher: RunFolder, why: str) -> None:
    log.info("%s: using %s, %s%s.", stage, teacher.path, why, _reached(teacher))


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

    Raises:
        RecipeError: there is no finished teacher, and `may_train` is false.
    """
    named = named_teachers(loaded, workspace)
    parts = student_parts(loaded, workspace)
    runs = _train_teachers(named, parts, resume=resume, may_train=may_train)
    return runs, [open_teacher(run, parts) for run in runs], parts
