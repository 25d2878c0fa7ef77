"""Distills a student from its frozen teacher on unlabeled images; trains a missing teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from kdedge.config.load import LoadedRecipe, override_texts
from kdedge.errors import RecipeError
from kdedge.messages import option
from kdedge.methods.base import Teacher
from kdedge.progress import working
from kdedge.records.tables import images_text
from kdedge.runs.find import newest_run
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import measure_accuracy, measure_without_labels, unlabeled_sample
from kdedge.runs.model import RunModel, load_run, load_teacher
from kdedge.runs.results import readable_evaluation
from kdedge.setup.method import MethodChoice
from kdedge.setup.workspace import Workspace
from kdedge.training.job import Job
from kdedge.training.output_store.store import OutputStore
from kdedge.training.preflight import trial_steps
from kdedge.training.run_job import changed_input, run_job
from kdedge.training.student import (
    check_predicts,
    find_named_teacher,
    one_pass_job,
    student_job,
    teacher_run_or_job,
    with_teacher_run,
)
from kdedge.training.teacher import teacher_job
from kdedge.training.teacher_check import compare_with_references

log = logging.getLogger(__name__)


def distill_student(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False, keep_teacher: bool = False
) -> RunFolder:
    """Trains the recipe's student, and first its teacher if it is missing.

    Args:
        loaded: the recipe.
        workspace: the command's workspace; its processes fill a teacher store together.
        resume: continue interrupted runs of the same teacher and student.
        keep_teacher: use a trained teacher even if zero-shot CLIP or a ridge regression on its
            backbone is better on the labeled images.

    Returns:
        The student's run.
    """
    job = _student_with_teacher(loaded, workspace, resume=resume, keep_teacher=keep_teacher)
    one_pass_run = None
    one_pass = one_pass_job(job)
    if one_pass is not None:
        stage = "Student 2/2, in one pass"
        name = loaded.recipe.name
        found = workspace.group.on_rank0(
            lambda: newest_run(workspace.root, name, key=one_pass.key())
        )
        one_pass_run = found or _run_stage(stage, one_pass, resume=resume)
    student = _run_stage("Student 2/2", job, resume=resume)
    if one_pass_run is not None and workspace.group.on_rank0(
        lambda: _is_one_pass_better(one_pass_run, student, job)
    ):
        return one_pass_run
    return student


def store_features(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool = False, keep_teacher: bool = False
) -> OutputStore:
    """Fills the teacher store for the recipe's distillation; see `distill_student`.

    Raises:
        RecipeError: the recipe has no student, or its views are 0, so that nothing is stored.
    """
    if loaded.recipe.needed_student().views == 0:
        raise RecipeError(
            "student.views is 0: the teacher runs in every step, and nothing is stored.\n"
            "  Set it to the number of crops to store of each image, for example 4."
        )
    job = _student_with_teacher(loaded, workspace, resume=resume, keep_teacher=keep_teacher)
    filler = job.filler
    assert filler is not None  # views is refused if the teacher is a file
    filler.fill()
    return filler.store


def _student_with_teacher(
    loaded: LoadedRecipe, workspace: Workspace, *, resume: bool, keep_teacher: bool
) -> Job:
    """The job of the recipe's student with its teacher, which is trained first if it is missing.

    If the teacher has to be trained, one student step runs first: its errors come before the wait.
    If the teacher did not learn, the student gets another one.
    """
    student, missing = student_job(loaded, workspace)
    if missing is None:
        _log_teacher("Teacher 1/2", loaded, student.teacher_run)
    else:
        with working("trying a step of the student"):
            one_pass_job(student)  # raises errors of the validation images, too
            trial_steps(student, 1)
        run = _train_missing_teacher("Teacher 1/2", missing, resume=resume)
        student = with_teacher_run(run, student)
    other = _recipe_with_better_teacher(loaded, student.teacher, student.setup, keep=keep_teacher)
    if other is None:
        return student
    return _student_with_teacher(other, workspace, resume=resume, keep_teacher=keep_teacher)


def trained_teacher(loaded: LoadedRecipe, workspace: Workspace, names: Sequence[str]) -> RunModel:
    """The recipe's teacher for a class list, for its logits; also one that cannot teach a student.

    A missing teacher is trained first, or resumed. One that did not learn is replaced, as by
    `distill_student`.

    Raises:
        RecipeError: the teacher is a file, or was not trained on every class.
    """
    if loaded.recipe.needed_teacher().file is not None:
        raise RecipeError(
            "The teacher is a file of probabilities, which `kdedge distill` reads itself.\n"
            "  Name another method."
        )
    run = find_named_teacher(loaded, workspace) or teacher_run_or_job(loaded, workspace)
    if isinstance(run, Job):
        check_predicts(run.setup, names)
        resume = newest_run(workspace.root, key=run.key(), is_finished=False) is not None
        run = _train_missing_teacher("Teacher", run, resume=resume)
    else:
        _log_teacher("Teacher", loaded, run)
    teacher = load_teacher(run, workspace, loaded.recipe, names)
    check_predicts(teacher.setup, names)
    other = _recipe_with_better_teacher(loaded, teacher, None, keep=False)
    return teacher if other is None else trained_teacher(other, workspace, names)


def _log_teacher(stage: str, loaded: LoadedRecipe, run: RunFolder | None) -> None:
    """Logs which teacher is used: a finished run, or a file if there is no run."""
    spec = loaded.recipe.needed_teacher()
    why = "trained with the same settings and data" if spec.is_trained else "which the recipe names"
    used = f"the probabilities of {spec.file}"
    if run is not None:
        used = f"{run.path}, {why}{_accuracy_text(run)}"
    log.info(f"{stage}: using {used}.")


def _train_missing_teacher(stage: str, job: Job, *, resume: bool) -> RunFolder:
    """Trains a teacher; says in what it differs from the recipe's newest one."""
    other = newest_run(job.setup.workspace.root, job.setup.recipe.name, role="teacher")
    if other is not None:
        log.info(
            f"{stage}: training another one than {other.path}, which had different"
            f" {changed_input(other, job)}."
        )
    return _run_stage(stage, job, resume=resume)


def _recipe_with_better_teacher(
    loaded: LoadedRecipe, teacher: Teacher | None, student: MethodChoice | None, *, keep: bool
) -> LoadedRecipe | None:
    """The recipe with another teacher if its own did not learn, with a warning; else None.

    A teacher did not learn if zero-shot CLIP or ridge is better on its own training images. A run
    that the recipe names, or a file, stays.

    Args:
        loaded: the recipe.
        teacher: its teacher, which is trained.
        student: the student's method; None if only the teacher's logits are needed.
        keep: only warn.
    """
    spec = loaded.recipe.needed_teacher()
    if not spec.is_trained:
        return None
    assert isinstance(teacher, RunModel)  # the recipe's own job trained it
    run = teacher.run
    workspace = teacher.setup.workspace
    job = teacher_job(loaded, workspace)
    accuracies = workspace.group.on_rank0(lambda: compare_with_references(run, job, teacher))
    trained = accuracies.pop("trained", 0.0)
    better = {name: value for name, value in accuracies.items() if value > trained}
    if not better:
        return None
    needs_vectors = student is not None and student.settings.classifier == "teacher_vectors"
    usable = [name for name in better if not (needs_vectors and name == "ridge")]  # ridge has none
    method = job.setup.method_name
    chosen = max(usable or better, key=better.__getitem__)
    if keep:
        remedy = f"Using it anyway, because of {option('--keep-teacher', 'keep_teacher=True')}."
    elif not usable:
        remedy = "Set teacher.method: ridge and student.method: ridge, or raise optim.lr."
    else:
        (named,) = override_texts({"teacher.run": str(run.path)})
        in_python = "keep_teacher=True (distill, fill_teacher_store)"
        insist = option("--keep-teacher (distill, teach --store)", in_python)
        remedy = f"Using {chosen} as the teacher; {named} or {insist} keeps {method}."
    log.warning(
        f"The teacher, {method}, is right on {trained:.1f} % of the images that it was trained on"
        f" (mean over classes), and {chosen} on the same backbone on {better[chosen]:.1f} %.\n"
        f"  {remedy}"
    )
    if keep or not usable:
        return None
    other = spec.model_copy(update={"method": chosen, "settings": {}, "optim": None})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"teacher": other}))


def _is_one_pass_better(ridge: RunFolder, trained: RunFolder, student: Job) -> bool:
    """Whether the student of one pass is better than the trained one.

    The worse one's run records the better one. The accuracy on the images that `data.validation`
    draws decides, mean over labeled classes. If there are no such images, the agreement with the
    teacher decides.
    """
    setup = student.setup
    teacher = student.teacher
    workspace = setup.workspace
    classes = setup.classes
    images = setup.images.in_one_process
    models = [load_run(run, workspace) for run in (ridge, trained)]
    if setup.recipe.data.validation is not None:
        labeled = images.drawn_validation().of_classes(classes.labeled)
        results = [measure_accuracy(m, labeled, classes).result for m in models]
        # Base classes are told from each other alone, as where an epoch is selected
        scores = [r.mean_over_classes if r.base is None else r.base for r in results]
        does = "is right"
        where = f"{images_text(len(labeled.indices))} of data.validation"
    else:
        sample = unlabeled_sample(images)
        assert sample is not None  # the students were trained on unlabeled images
        scores = [
            measure_without_labels(m, *sample, teacher=teacher).agreement_percent or 0.0
            for m in models
        ]
        does = "agrees with its teacher"
        where = sample[1]
    is_better = scores[0] > scores[1]
    kind, better = ("ridge", ridge) if is_better else ("trained", trained)
    log.info(
        f"Using the {kind} student {better.path}: of {where}, the ridge student {does} on"
        f" {scores[0]:.1f} % and the trained one on {scores[1]:.1f} %."
    )
    better.update(replaced_by=None)  # other images may have said the opposite before
    (trained if is_better else ridge).update(replaced_by=better.name)
    return is_better


def _run_stage(stage: str, job: Job, *, resume: bool) -> RunFolder:
    """Trains one of the two models of a distillation, with a log line before and after."""
    what = f"{job.setup.method_name} on {job.setup.backbone.name}"
    if job.setup.is_closed_form:
        what = f"solving {what}."
    elif job.method.trainable_parameters():
        what = f"training {what}."
    else:
        what = f"{what}, which needs no training."
    log.info(f"{stage}: {what}")
    run = run_job(job, resume=resume)
    log.info(f"{stage} done{_accuracy_text(run)}.")
    return run


def _accuracy_text(run: RunFolder) -> str:
    """A run's accuracy, to end a message; empty if it has none or its record is damaged."""
    result = readable_evaluation(run).get(run.role)
    if result is None:
        return ""
    what = "accuracy" if result.harmonic_mean is None else "harmonic mean"
    return f": {what} {result.main_accuracy:.2f} %"
