"""Distills a student from its frozen teacher on unlabeled images; trains a missing teacher."""

from __future__ import annotations

from dataclasses import replace

from kdedge.config.load import LoadedRecipe
from kdedge.distributed import SINGLE_PROCESS
from kdedge.errors import RecipeError
from kdedge.messages import get_logger
from kdedge.progress import working
from kdedge.runs.find import newest
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import measure_accuracy, measure_without_labels, unlabeled_sample
from kdedge.runs.model import RunModel, load_run
from kdedge.runs.results import stored_evaluation
from kdedge.setup.data import RecipeData
from kdedge.setup.workspace import Workspace
from kdedge.training.job import Job
from kdedge.training.preflight import trial_steps
from kdedge.training.run_job import changed_input, run_job
from kdedge.training.student import (
    load_teacher,
    one_pass_job,
    resolve_teacher,
    student_job,
    with_teacher,
)
from kdedge.training.teach import teacher_job
from kdedge.training.teacher_check import compare_with_references
from kdedge.training.teacher_store.store import TeacherStore

log = get_logger(__name__)


def distill_student(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False, keep_teacher: bool = False
) -> tuple[RunFolder | None, RunFolder]:
    """Trains the recipe's student, and first its teacher if it is missing.

    Args:
        loaded: the recipe.
        workspace: the command's workspace; its processes fill a teacher store together.
        resume: continue interrupted runs of the same teacher and student.
        keep_teacher: use a trained teacher even if zero-shot CLIP or a ridge regression on its
            backbone is better on the labeled images.

    Returns:
        The teacher's run, or None if the teacher is a file, and the student's run.
    """
    run, job = _with_better_teacher(loaded, workspace, resume=resume, keep_teacher=keep_teacher)
    one_pass_run = None
    one_pass = one_pass_job(job)
    if one_pass is not None:
        one_pass_run = workspace.group.on_rank0(lambda: newest(workspace.root, key=one_pass.key()))
        one_pass_run = one_pass_run or _run_stage(
            "Student 2/2, in one pass", one_pass, resume=resume
        )
    student = _run_stage("Student 2/2", job, resume=resume)
    if one_pass_run is not None and workspace.group.on_rank0(
        lambda: _is_one_pass_better(one_pass_run, student, job)
    ):
        student = one_pass_run
    return run, student


def store_features(loaded: LoadedRecipe, workspace: Workspace, *, resume: bool) -> TeacherStore:
    """Fills the teacher store for the recipe's distillation; trains a missing teacher first.

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
    _, job = _with_better_teacher(loaded, workspace, resume=resume)
    filler = job.filler
    assert filler is not None  # views is refused if the teacher is a file
    filler.fill()
    return filler.store


def _with_better_teacher(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool, keep_teacher: bool = False
) -> tuple[RunFolder | None, Job]:
    """`train_missing_teacher`, with zero-shot CLIP or ridge for a teacher that did not learn."""
    run, student = train_missing_teacher(loaded, workspace, resume=resume)
    spec = loaded.recipe.teacher
    assert spec is not None  # `train_missing_teacher` refuses a recipe without a teacher
    if run is None or spec.run is not None:  # the user chose it
        return run, student
    better = _better_method(run, student, keep_teacher=keep_teacher)
    if better is None:
        return run, student
    other = spec.model_copy(update={"method": better, "settings": {}, "optim": None})
    recipe = loaded.recipe.model_copy(update={"teacher": other})
    return train_missing_teacher(replace(loaded, recipe=recipe), workspace, resume=resume)


def train_missing_teacher(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool
) -> tuple[RunFolder | None, Job]:
    """The teacher's run, which is trained if it is missing, and the job of its student.

    If the teacher has to be trained, one student step runs first: its errors come before the wait.
    """
    spec = loaded.recipe.teacher
    source, student = resolve_teacher(student_job(loaded, workspace))
    assert spec is not None  # `resolve_teacher` refuses a recipe without a teacher
    if source is None:
        log.info(f"Teacher 1/2: using the probabilities of {spec.file}.")
        return None, student
    if isinstance(source, RunFolder):
        is_named = spec.run is not None
        why = "which the recipe names" if is_named else "trained with the same settings and data"
        log.info(f"Teacher 1/2: using {source.path}, {why}{_accuracy_text(source)}.")
        return source, student
    with working("trying a step of the student"):
        trial_steps(student, 1)
    other = newest(workspace.root, loaded.recipe.name, role="teacher")
    if other is not None:
        log.info(
            f"Teacher 1/2: training another one than {other.path}, which had different"
            f" {changed_input(other, source)}."
        )
    run = _run_stage("Teacher 1/2", source, resume=resume)
    return run, with_teacher(student, load_teacher(run, student))


def _better_method(run: RunFolder, student: Job, *, keep_teacher: bool) -> str | None:
    """Zero-shot CLIP or ridge, if it is better on the teacher's training images; else None."""
    teacher, workspace = student.teacher, student.setup.workspace
    assert isinstance(teacher, RunModel)
    job = teacher_job(student.setup.loaded, workspace)
    accuracies = workspace.group.on_rank0(lambda: compare_with_references(run, job, teacher))
    trained = accuracies.pop("trained", 0.0)
    better = {name: value for name, value in accuracies.items() if value > trained}
    if not better:
        return None
    method, best = job.choice.name, max(better, key=better.__getitem__)
    summary = (
        f"The teacher, {method}, is right on {trained:.1f} % of the images that it was trained on"
        f" (mean over classes), and {best} on the same backbone on {better[best]:.1f} %."
    )
    if not student.setup.choice.settings.has_own_class_vectors:
        better.pop("ridge", None)  # it has no class vectors
    if keep_teacher or not better:
        remedy = "Using it anyway, because of --keep-teacher."
        if not keep_teacher:
            remedy = "Set teacher.method: ridge and student.method: ridge, or raise optim.lr."
        log.warning(f"{summary}\n  {remedy}")
        return None
    chosen = max(better, key=better.__getitem__)
    log.warning(
        f"{summary}\n"
        f"  Using {chosen} as the teacher; `kdedge distill` with --keep-teacher keeps {method}."
    )
    return chosen


def _is_one_pass_better(ridge: RunFolder, trained: RunFolder, student: Job) -> bool:
    """Whether the student of one pass is better than the trained one.

    The worse one's run records the better one. The accuracy on `data.validation` decides, mean over
    classes. If there are no such images, the agreement with the teacher decides.
    """
    setup, teacher = student.setup, student.teacher
    workspace, classes = setup.workspace, setup.classes
    images = RecipeData(setup.loaded.recipe, classes, workspace, group=SINGLE_PROCESS)
    models = [load_run(run, workspace) for run in (ridge, trained)]
    labeled = images.load("validation")
    if labeled is not None:
        scores = [
            measure_accuracy(m, labeled, classes, selection="last")[0].mean_over_classes
            for m in models
        ]
        does, where = "is right", f"{len(labeled.indices)} images of data.validation"
    else:
        sample = unlabeled_sample(images)
        assert sample is not None  # the students were trained on unlabeled images
        scores = [
            measure_without_labels(m, *sample, teacher=teacher).agreement_percent or 0.0
            for m in models
        ]
        does, where = "answers as its teacher", sample[1]
    is_better = scores[0] > scores[1]
    kind, better = ("ridge", ridge) if is_better else ("trained", trained)
    log.info(
        f"Using the {kind} student {better.path}: of {where}, the ridge student {does} on"
        f" {scores[0]:.1f} % and the trained one on {scores[1]:.1f} %."
    )
    better.update(better=None)  # other images may have said the opposite before
    (trained if is_better else ridge).update(better=better.name)
    return is_better


def _run_stage(stage: str, job: Job, *, resume: bool) -> RunFolder:
    """Trains one of the two models of a distillation, with a log line before and after."""
    what = f"{job.choice.name} on {job.setup.backbone.name}"
    if job.choice.is_solved:
        what = f"solving {what}."
    elif job.data.pool is not None or job.method.trainable_parameters():
        what = f"training {what}."
    else:
        what = f"{what}, which needs no training."
    log.info(f"{stage}: {what}")
    run = run_job(job, resume=resume)
    log.info(f"{stage} done{_accuracy_text(run)}.")
    return run


def _accuracy_text(run: RunFolder) -> str:
    """A run's accuracy, to end a message; empty if it has none or its record is damaged."""
    result = stored_evaluation(run).get(run.role)
    if result is None:
        return ""
    what = "accuracy" if result.harmonic_mean is None else "harmonic mean"
    return f": {what} {result.main_accuracy:.2f} %"
