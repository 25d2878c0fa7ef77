"""Evaluates a trained job: accuracy next to its teacher's, and multiply-adds."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdedge.errors import DataError
from kdedge.eval_details import EvalDetails
from kdedge.evaluation.flops import count_gmacs
from kdedge.results import EvalResult, UnlabeledResult
from kdedge.runs.measure import measure
from kdedge.runs.model import Model, RunModel
from kdedge.runs.results import Evaluations, read_details, read_evaluation
from kdedge.runs.samples import measure_with_samples
from kdedge.runs.unlabeled import images_to_judge, judge
from kdedge.setup.data import RecipeData
from kdedge.setup.images import Images
from kdedge.training.job.job import Job, Teaching, zero_shot_model
from kdedge.training.teachers.ensemble import Ensemble
from kdedge.training.teachers.measure import measure_teachers

log = logging.getLogger(__name__)

Measured = tuple[EvalResult, EvalDetails]

_ENOUGH = 100
"""Test images from which on a low accuracy says something."""


def measure_job(job: Job, images: Images) -> Measured:
    """Measures the accuracy of a job's method with its current weights."""
    return measure(job.model(), images, job.classes, selection=job.choice.optim.selection)


def evaluations(job: Job) -> Evaluations:
    """Results of the trained method, its teachers and zero-shot CLIP on the same backbone.

    A backbone without a text encoder has no zero-shot result. With several teachers, `teacher` is
    the result of all of them together.
    """
    test = job.held_out.test
    if test is None:
        return {}
    own = measure_with_samples(
        job.model(),
        test,
        job.classes,
        selection=job.choice.optim.selection,
        teacher=None if job.teaching is None else _answering(job.teaching, test),
    )
    found = {str(job.setup.role): own}
    if job.teaching is not None:
        found |= _of_teachers(job, job.teaching, test)
    if job.setup.backbone.has_texts:
        found["zeroshot"] = measure(zero_shot_model(job), test, job.classes, selection="last")
    return found


def _answering(teaching: Teaching, images: Images) -> Model | Ensemble | None:
    """The teacher, or all teachers together, if they have predictions for these images."""
    if teaching.ensemble is None:
        return teaching.teacher
    return teaching.ensemble if teaching.ensemble.can_answer(images) else None


def _of_teachers(job: Job, teaching: Teaching, test: Images) -> Evaluations:
    if teaching.ensemble is None:
        return {"teacher": _of_teacher(job, teaching.teacher, test)}
    return measure_teachers(teaching.ensemble, test, job.classes)


def _of_teacher(job: Job, teacher: Model, test: Images) -> Measured:
    """The teacher's result: that of its own run if the images are the same, else measured."""
    wanted = test.hash_with(job.classes.names)
    if isinstance(teacher, RunModel):
        try:
            result = read_evaluation(teacher.run).get(teacher.run.kind)
            details = read_details(teacher.run).get(teacher.run.kind)
        except DataError:  # damaged
            result = details = None
        if result is not None and details is not None and result.images_hash == wanted:
            return result, replace(details, samples=None)
    return measure(teacher, test, job.classes, selection="last")


def judged_images(job: Job) -> tuple[Images, str] | None:
    """The unlabeled images that a student without test images is evaluated on, and their name.

    None for other models.
    """
    if job.teaching is None or job.held_out.test is not None:
        return None
    return images_to_judge(RecipeData(job.setup.loaded.recipe, job.classes, job.setup.workspace))


def unlabeled_result(job: Job, images: Images, what: str) -> UnlabeledResult:
    """Evaluates a student on unlabeled images; see `judged_images`."""
    assert job.teaching is not None
    return judge(job.model(), images, what, teacher=_answering(job.teaching, images))


def followed(job: Job, images: Images | None) -> dict[str, Any]:
    """How often each of a student's several teachers was followed on images; else empty."""
    ensemble = None if job.teaching is None else job.teaching.ensemble
    if ensemble is None or images is None or not ensemble.can_answer(images):
        return {}
    return {"teachers": [one.model_dump() for one in ensemble.summarize(ensemble.answers(images))]}


def work(job: Job) -> dict[str, float]:
    """GMACs (1e9 multiply-adds) per image of student and teachers; empty without a teacher."""
    if job.teaching is None:
        return {}
    job.method.module.requires_grad_(False)  # the counter fails at leaves with gradients
    own, models = job.model(), job.teaching.models
    # All are known before the counter runs, as its tensors have no values
    vectors = own.class_vectors()
    for teacher in models:
        _ = teacher.class_vectors(), teacher.scale
    return {
        # Not its logits: an image encoder alone has its scale in a tensor, which has no value there
        "gmacs": _gmacs(own, lambda images: own.forward_features(images) @ vectors.T),
        "teacher_gmacs": sum(_gmacs(teacher, teacher.logits) for teacher in models),
    }


def _gmacs(model: Model, logits: Callable[[Tensor], Tensor]) -> float:
    size = model.preprocess.size_px
    return count_gmacs(logits, torch.zeros(1, 3, size, size, device=model.device))


def warn_of_failure(job: Job, found: Evaluations) -> None:
    """Warns if a model guesses, or if training made it worse than zero-shot CLIP."""
    role = str(job.setup.role)
    own = found[role][1]
    zero_shot = found["zeroshot"][1] if "zeroshot" in found else None
    guess = _guess(own)
    if guess is not None:
        remedy = "Check that the images match the class names, or change optim.lr and optim.epochs."
        log.warning("The %s %s.\n  %s", role, guess, remedy)
    elif zero_shot is not None and _is_worse(own, zero_shot):
        log.warning(
            "The %s is right on %.2f %% of %s test images, and zero-shot CLIP on its backbone on"
            " %.2f %%: training made it worse.\n"
            "  Change optim.lr, optim.epochs or the method's settings.",
            *(role, own.accuracy_percent, f"{own.n_images:,}", zero_shot.accuracy_percent),
        )


def _guess(own: EvalDetails) -> str | None:
    """How a model shows that it guesses; None if it does not, or nothing shows it."""
    tested, answered = ({pair[i] for pair in own.confusion} for i in (0, 1))
    if len(tested) == 1:
        return None
    if len(answered) == 1:
        return f"predicts {own.class_names[answered.pop()]!r} for every test image"
    chance = 1 / len(own.class_names)
    deviation = math.sqrt(chance * (1 - chance) / own.n_images)
    if own.n_images >= _ENOUGH and own.accuracy_percent / 100 <= chance + 2 * deviation:
        return (
            f"is right on {own.accuracy_percent:.2f} % of {own.n_images:,} test images, which"
            f" is no better than guessing among {len(own.class_names)} classes"
        )
    return None


def _is_worse(own: EvalDetails, other: EvalDetails) -> bool:
    """Whether a model's accuracy is lower by more than chance explains: two deviations."""
    shares = [one.accuracy_percent / 100 for one in (own, other)]
    deviation = math.sqrt(sum(share * (1 - share) for share in shares) / own.n_images)
    return own.n_images >= _ENOUGH and shares[1] - shares[0] > 2 * deviation
