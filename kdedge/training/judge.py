"""What a job's model is worth once it is trained: accuracy beside its teacher's, and its work."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

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
from kdedge.training.job.job import Job, zero_shot_model

log = logging.getLogger(__name__)

Measured = tuple[EvalResult, EvalDetails]


def measure_job(job: Job, images: Images) -> Measured:
    """Measures what a job trains, as it is now."""
    return measure(job.model(), images, job.classes, selection=job.choice.optim.selection)


def evaluations(job: Job) -> Evaluations:
    """Results of the trained method, its teacher and zero-shot CLIP on the same backbone.

    An image encoder alone has no zero-shot row.
    """
    test = job.held_out.test
    if test is None:
        return {}
    own = measure_with_samples(
        job.model(),
        test,
        job.classes,
        selection=job.choice.optim.selection,
        teacher=None if job.teaching is None else job.teaching.teacher,
    )
    found = {str(job.setup.role): own}
    if job.teaching is not None:
        found["teacher"] = _of_teacher(job, job.teaching.teacher, test)
    if job.setup.backbone.has_texts:
        found["zeroshot"] = measure(zero_shot_model(job), test, job.classes, selection="last")
    return found


def _of_teacher(job: Job, teacher: Model, test: Images) -> Measured:
    """The teacher's result: its own run's where that is of the same images, else measured."""
    wanted = test.hash_with(job.classes.names)
    if isinstance(teacher, RunModel):
        try:
            result = read_evaluation(teacher.run).get("teacher")
            details = read_details(teacher.run).get("teacher")
        except DataError:  # damaged
            result = details = None
        if result is not None and details is not None and result.images_hash == wanted:
            return result, replace(details, samples=None)
    return measure(teacher, test, job.classes, selection="last")


def unlabeled_result(job: Job) -> UnlabeledResult | None:
    """How a student without test images answers unlabeled ones; None for other models."""
    if job.teaching is None or job.held_out.test is not None:
        return None
    found = images_to_judge(RecipeData(job.setup.loaded.recipe, job.classes, job.setup.workspace))
    if found is None:
        return None
    return judge(job.model(), *found, teacher=job.teaching.teacher)


def work(job: Job) -> dict[str, float]:
    """Multiply-adds of one image, 1e9, of a student and its teacher; empty for other models."""
    if job.teaching is None:
        return {}
    job.method.module.requires_grad_(False)  # the counter fails at leaves with gradients
    own, teacher = job.model(), job.teaching.teacher
    # All are known before the counter runs, as its tensors have no values
    vectors, *_ = own.class_vectors(), teacher.class_vectors(), teacher.scale
    return {
        # Not its logits: an image encoder alone has its scale in a tensor, which has no value there
        "gmacs": _gmacs(own, lambda images: own.forward_features(images) @ vectors.T),
        "teacher_gmacs": _gmacs(teacher, teacher.logits),
    }


def _gmacs(model: Model, logits: Callable[[Tensor], Tensor]) -> float:
    size = model.preprocess.size_px
    return count_gmacs(logits, torch.zeros(1, 3, size, size, device=model.device))


def warn_of_guesses(job: Job, found: EvalDetails) -> None:
    """Warns of a model that always answers the same, or is right no more often than by chance."""
    tested, answered = ({pair[i] for pair in found.confusion} for i in (0, 1))
    chance = 1 / len(found.class_names)
    deviation = math.sqrt(chance * (1 - chance) / found.n_images)
    if len(tested) == 1:
        return
    if len(answered) == 1:
        what = f"calls every test image {found.class_names[answered.pop()]!r}"
    elif found.n_images >= 100 and found.accuracy_percent / 100 <= chance + 2 * deviation:
        what = (
            f"is right on {found.accuracy_percent:.2f} % of {found.n_images:,} test images, which"
            f" is no better than guessing among {len(found.class_names)} classes"
        )
    else:
        return
    log.warning(
        "The %s %s.\n  See whether images and class names fit, or change optim.lr and"
        " optim.epochs.",
        *(job.setup.role, what),
    )
