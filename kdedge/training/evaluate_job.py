"""Evaluates a trained job: accuracies of the model, its teacher and baselines, multiply-adds."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch

from kdedge.data.images import Images
from kdedge.evaluation.flops import count_gmacs
from kdedge.records.evaluation import UnlabeledResult
from kdedge.records.record import if_readable
from kdedge.runs.logit_adjustment import logit_adjustment_of
from kdedge.runs.measure import (
    measure_accuracy,
    measure_logits,
    measure_without_labels,
    unlabeled_sample,
)
from kdedge.runs.model import MethodModel, RunModel
from kdedge.runs.results import (
    Evaluation,
    Evaluations,
    read_logit_adjustment,
    readable_details,
    readable_evaluation,
)
from kdedge.training.closed_form import ridge_on_labels
from kdedge.training.job import Job, zero_shot_model

log = logging.getLogger(__name__)

_ENOUGH = 100  # fewest test images for which a low accuracy is reported


def evaluations(job: Job, model: MethodModel) -> Evaluations:
    """Results of the trained method, its teacher, and two baselines on the same backbone.

    One baseline is zero-shot CLIP, also with its own offsets if `logit_adjustment` finds any; it
    needs a text encoder. The other is a ridge regression on the labels, which shows what the
    backbone reaches without the teacher; it needs labels of every class. A teacher that is a file
    is measured if it has predictions for the test images.

    Args:
        job: a job with the trained method.
        model: the trained model, with offsets if the recipe has `logit_adjustment`.
    """
    test = job.test
    if test is None:
        return {}
    results = {
        str(job.setup.role): measure_accuracy(
            model,
            test,
            job.setup.classes,
            selection=job.setup.optim.selection,
            with_samples=True,
            teacher=job.teacher,
        )
    }
    teacher_result = _teacher_result(job, test)
    if teacher_result is not None:
        results["teacher"] = teacher_result
    labeled = None if job.teacher is None else job.truly_labeled
    if labeled is not None and labeled.has_labels_of(len(job.setup.classes.names)):
        ridge, _ = ridge_on_labels(job.setup, labeled)
        results["labels_alone"] = measure_accuracy(adjusted(job, ridge), test, job.setup.classes)
    if job.setup.backbone.has_text_encoder:
        zero_shot = zero_shot_model(job)
        logits = zero_shot.logits_of(test, what="evaluating images")
        results["zeroshot"] = measure_logits(logits, test, job.setup.classes)
        balanced = adjusted(job, zero_shot)
        if balanced.offsets is not None and balanced.offsets.any():
            logits = logits - balanced.offsets.cpu()
            results["zeroshot_balanced"] = measure_logits(logits, test, job.setup.classes)
    return results


def adjusted(job: Job, model: MethodModel) -> MethodModel:
    """The model with the offsets of the recipe's `logit_adjustment`, or as it is without any."""
    found = logit_adjustment_of(model, job.setup.images)
    if found is None:
        return model
    return MethodModel(model.setup, model.method, logit_adjustment=found)


def _teacher_result(job: Job, test: Images) -> Evaluation | None:
    """The teacher's result: read from its run if images and offsets are the same, else measured."""
    teacher = job.teacher
    if teacher is None:
        return None
    classes = job.setup.classes
    if isinstance(teacher, RunModel):
        run = teacher.run
        result = readable_evaluation(run).get(run.role)
        details = readable_details(run).get(run.role)
        has_same_offsets = teacher.logit_adjustment == if_readable(read_logit_adjustment, run)
        if (
            has_same_offsets
            and result is not None
            and details is not None
            and result.images_hash == test.hash_with(classes.names)
            and result.split == classes.split
        ):
            return Evaluation(result, replace(details, samples=None))
    logits = teacher.logits_of(test, what="running the teacher")
    return None if logits is None else measure_logits(logits, test, classes)


def unlabeled_result(job: Job, model: MethodModel) -> UnlabeledResult | None:
    """Evaluates a student on unlabeled images if there are no test images; else None."""
    if job.teacher is None or job.test is not None:
        return None
    sample = unlabeled_sample(job.setup.images.in_one_process)
    if sample is None:
        return None
    return measure_without_labels(model, *sample, teacher=job.teacher)


def count_cost(job: Job) -> dict[str, float]:
    """GMACs per image and weights of a student and its teacher; empty for other roles.

    Freezes the student's method for good, so it is called after training.
    """
    if job.teacher is None:
        return {}
    job.method.module.requires_grad_(False)  # the counter fails at leaf tensors with gradients
    counts = _cost(job.model())
    if isinstance(job.teacher, MethodModel):  # a file has no cost
        counts |= {f"teacher_{name}": value for name, value in _cost(job.teacher).items()}
    return counts


def _cost(model: MethodModel) -> dict[str, float]:
    """GMACs per image, and weights through which an image passes: encoder, prompts, projector."""
    model.class_vectors()  # computed before, since no image needs them anew
    size = model.preprocess.size_px
    return {
        "gmacs": count_gmacs(model.logits, torch.zeros(1, 3, size, size, device=model.device)),
        "parameters": sum(x.numel() for x in model.method.image_modules().parameters()),
    }


def warn_of_failure(job: Job, results: Evaluations) -> None:
    """Warns if a model guesses, or if training made it worse than zero-shot CLIP."""
    role = str(job.setup.role)
    trained = results[role].details
    zero_shot = results["zeroshot"].details if "zeroshot" in results else None
    n_images = trained.n_images
    n_classes = len(trained.class_names)
    share = trained.accuracy_percent / 100
    result = f"is right on {trained.accuracy_percent:.2f} % of {n_images:,} test images"
    keys = "the method's settings"
    trains = job.setup.trains_by_gradient
    remedy = f"Change {f'optim.lr, optim.epochs or {keys}' if trains else keys}."
    if trained.only_class is not None:
        problem = f"predicts {trained.only_class!r} for every test image."
        images = job.images or job.test
        assert images is not None  # it was evaluated on test images
        key = images.source.items[images.indices[0]].key
        remedy = f"Look whether images such as {key} are black or of other classes. {remedy}"
    elif n_images < _ENOUGH or len({label for label, _, _ in trained.confusion}) == 1:
        return
    elif share <= 1 / n_classes + 2 * _deviation(1 / n_classes, n_images):
        problem = f"{result}, which is no better than guessing among {n_classes} classes."
        remedy = f"Check that the images match the class names. {remedy}"
    elif zero_shot is not None and (
        zero_shot.accuracy_percent / 100 - share
        > 2 * _deviation(share, n_images, zero_shot.accuracy_percent / 100)
    ):
        problem = (
            f"{result}, and zero-shot CLIP on its backbone on {zero_shot.accuracy_percent:.2f} %:"
            " training made it worse."
        )
    else:
        return
    log.warning(f"The {role} {problem}\n  {remedy}")


def _deviation(share: float, n_images: int, other_share: float = 0.0) -> float:
    """Standard deviation of a share of images, or of the difference of two."""
    return math.sqrt((share * (1 - share) + other_share * (1 - other_share)) / n_images)
