"""Evaluates a trained job: accuracy next to its teacher's, and multiply-adds."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kdedge.data.images import Images
from kdedge.errors import DataError
from kdedge.evaluation.flops import count_gmacs
from kdedge.results import BalanceResult, EvalDetails, EvalResult, UnlabeledResult
from kdedge.runs.balance import balance_of
from kdedge.runs.measure import Model, measure_accuracy, measure_logits, predict_logits
from kdedge.runs.model import MethodModel, RunModel
from kdedge.runs.results import Evaluations, read_details, read_evaluation
from kdedge.runs.unlabeled import measure_without_labels, unlabeled_sample
from kdedge.setup.data import RecipeData
from kdedge.training.closed_form import ridge_on_labels
from kdedge.training.job import Job, zero_shot_model
from kdedge.training.teachers import AnyTeacher, FileTeacher, ModelTeacher

log = logging.getLogger(__name__)

Measured = tuple[EvalResult, EvalDetails]

_ENOUGH = 100
"""Fewest test images for which a low accuracy is reported."""


def measure_job(job: Job, images: Images) -> Measured:
    """Measures the accuracy of a job's method with its current weights."""
    return measure_accuracy(job.model(), images, job.classes, selection=job.choice.optim.selection)


def evaluations(job: Job, balance: BalanceResult | None = None) -> Evaluations:
    """Results of the trained method, its teacher, and two baselines on the same backbone.

    These are zero-shot CLIP, and for a student with labels of every class a ridge regression on
    them alone: what the network reaches without the teacher. The method's own results are in
    balance where there are offsets; zero-shot CLIP is measured both ways.

    A backbone without a text encoder has no zero-shot result. A teacher that
    is a file is measured if the test images are among those that it answers.
    """
    test = job.test
    if test is None:
        return {}
    trained = measure_accuracy(
        _balanced(job.model(), balance),
        test,
        job.classes,
        selection=job.choice.optim.selection,
        with_samples=True,
        teacher=None if job.teacher is None else _answering(job.teacher, test),
    )
    results = {str(job.setup.role): trained}
    if job.teacher is not None:
        result = _of_teacher(job, job.teacher, test)
        if result is not None:
            results["teacher"] = result
    labeled = job.data.labeled
    if labeled is not None and len(set((labeled.labels or {}).values())) == len(job.classes.names):
        alone, _ = ridge_on_labels(job.setup, labeled)
        results["labels_alone"] = measure_accuracy(alone, test, job.classes, selection="last")
    if job.setup.backbone.has_texts:
        model = zero_shot_model(job)
        logits, labels = predict_logits(model, test)
        measured = functools.partial(
            measure_logits, labels=labels, images=test, classes=job.classes, selection="last"
        )
        results["zeroshot"] = measured(logits)
        own_balance = find_balance(job, model)
        if own_balance is not None:
            results["zeroshot_balanced"] = measured(logits - _offsets(own_balance, model))
    return results


def find_balance(job: Job, model: MethodModel) -> BalanceResult | None:
    """The offsets of a model of the job's classes; None if the recipe has no `balance`."""
    recipe = job.setup.loaded.recipe
    if recipe.balance is None:
        return None
    return balance_of(model, recipe.balance, recipe, job.classes, job.setup.workspace)


def _balanced(model: MethodModel, balance: BalanceResult | None) -> MethodModel:
    if balance is None:
        return model
    return MethodModel(model.setup, model.method, _offsets(balance, model).to(model.device))


def _offsets(balance: BalanceResult, model: MethodModel) -> Tensor:
    """[C] on the CPU, in the order of a model's classes."""
    return torch.tensor([balance.offsets[name] for name in model.class_names])


def _answering(teacher: AnyTeacher, images: Images) -> Model | FileTeacher | None:
    """The teacher, if it has predictions for these images."""
    if isinstance(teacher, ModelTeacher):
        return teacher.model
    return teacher if teacher.can_answer(images) else None


def _of_teacher(job: Job, teacher: AnyTeacher, test: Images) -> Measured | None:
    """The teacher's result: read from its own run if the images are the same, else measured."""
    list_hash = test.hash_with(job.classes.names)
    model = _answering(teacher, test)
    if isinstance(model, RunModel):
        try:
            result = read_evaluation(model.run).get(model.run.kind)
            details = read_details(model.run).get(model.run.kind)
        except DataError:  # damaged
            result = details = None
        if result is not None and details is not None and result.images_hash == list_hash:
            return result, replace(details, samples=None)
    return None if model is None else measure_accuracy(model, test, job.classes, selection="last")


def evaluation_images(job: Job) -> tuple[Images, str] | None:
    """The unlabeled images that a student without test images is evaluated on, and their name.

    None for other models.
    """
    if job.teacher is None or job.test is not None:
        return None
    return unlabeled_sample(RecipeData(job.setup.loaded.recipe, job.classes, job.setup.workspace))


def unlabeled_result(
    job: Job, images: Images, what: str, *, balance: BalanceResult | None
) -> UnlabeledResult:
    """Evaluates a student on unlabeled images; see `evaluation_images`."""
    assert job.teacher is not None
    model = _balanced(job.model(), balance)
    return measure_without_labels(model, images, what, teacher=_answering(job.teacher, images))


def count_operations(job: Job) -> dict[str, float]:
    """GMACs (1e9 multiply-adds) per image of a student and its teacher; else empty."""
    if job.teacher is None:
        return {}
    job.method.module.requires_grad_(False)  # the counter fails at leaves with gradients
    student, teacher = job.model(), job.teacher
    # Known before the counter runs, as its tensors have no values
    vectors = student.class_vectors()
    # Not its logits: an image encoder alone has its scale in a tensor, which has no value there
    counts = {"gmacs": _gmacs(student, lambda images: student.forward_features(images) @ vectors.T)}
    if isinstance(teacher, ModelTeacher):
        model = teacher.model
        _ = model.class_vectors(), model.scale
        counts["teacher_gmacs"] = _gmacs(model, model.logits)
    return counts


def _gmacs(model: Model, logits: Callable[[Tensor], Tensor]) -> float:
    size = model.preprocess.size_px
    return count_gmacs(logits, torch.zeros(1, 3, size, size, device=model.device))


def warn_of_failure(job: Job, results: Evaluations) -> None:
    """Warns if a model guesses, or if training made it worse than zero-shot CLIP."""
    role = str(job.setup.role)
    details = results[role][1]
    zero_shot = results["zeroshot"][1] if "zeroshot" in results else None
    guess = _guess(details)
    keys = "the method's settings"
    keys = keys if job.choice.is_solved else f"optim.lr, optim.epochs or {keys}"
    if guess is not None:
        remedy = f"Check that the images match the class names, or change {keys}."
        seen, which = job.data.images or job.data.pool, "images that it was trained on"
        if zero_shot is not None and zero_shot.only_class is not None:
            seen, which = job.test, "test images"
            remedy = "Zero-shot CLIP predicts one class, too."
        if seen is not None and details.only_class is not None:
            key = seen.source.items[seen.indices[0]].key
            remedy += f" Look whether the {which} are black or all the same, such as {key}."
        log.warning("The %s %s.\n  %s", role, guess, remedy)
        return
    if zero_shot is None:
        return
    shares = [result.accuracy_percent / 100 for result in (details, zero_shot)]
    deviation = math.sqrt(sum(share * (1 - share) for share in shares) / details.n_images)
    # By more than chance explains
    if details.n_images >= _ENOUGH and shares[1] - shares[0] > 2 * deviation:
        log.warning(
            "The %s is right on %.2f %% of %s test images, and zero-shot CLIP on its backbone on"
            " %.2f %%: training made it worse.\n"
            "  Change %s.",
            *(role, details.accuracy_percent, f"{details.n_images:,}"),
            *(zero_shot.accuracy_percent, keys),
        )


def _guess(details: EvalDetails) -> str | None:
    """How a model shows that it guesses; None if it does not, or nothing shows it."""
    if len({label for label, _, _ in details.confusion}) == 1:
        return None
    if details.only_class is not None:
        return f"predicts {details.only_class!r} for every test image"
    chance = 1 / len(details.class_names)
    deviation = math.sqrt(chance * (1 - chance) / details.n_images)
    if details.n_images >= _ENOUGH and details.accuracy_percent / 100 <= chance + 2 * deviation:
        return (
            f"is right on {details.accuracy_percent:.2f} % of {details.n_images:,} test images,"
            f" which is no better than guessing among {len(details.class_names)} classes"
        )
    return None
