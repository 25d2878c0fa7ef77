"""Estimates the time of a job's evaluation: the passes over images that are no training."""

from __future__ import annotations

import time

from kdedge.data.images import Images
from kdedge.loading.loader import evaluation_batches
from kdedge.runs.logit_adjustment import MAX_ADJUSTMENT_IMAGES
from kdedge.runs.measure import unlabeled_sample
from kdedge.runs.model import MethodModel
from kdedge.training.job import Job
from kdedge.training.output_store.store import FORWARD_BATCH


def evaluation_seconds(job: Job) -> float:
    """Estimates the time to evaluate a job's model, its teacher and its baselines.

    It is the number of images that pass the backbone, each pass counted, times the measured time of
    one. The time to encode texts is not counted.
    """
    images = job.test or job.images
    if images is None:
        return 0.0
    seconds = _n_passes(job) * _seconds_per_image(job.model(), images)
    n_by_teacher = _n_unlabeled(job)
    if n_by_teacher and isinstance(job.teacher, MethodModel):  # a file takes no time
        seconds += n_by_teacher * _seconds_per_image(job.teacher, images)
    return seconds


def _n_passes(job: Job) -> int:
    """The number of images that pass the job's backbone, one counted for each pass.

    See `run_job`, `evaluations` and `reference_accuracies`.
    """
    n_zero_shot = int(job.setup.backbone.has_text_encoder)
    labeled = job.truly_labeled
    has_labels = labeled is not None and labeled.has_labels_of(len(job.setup.classes.names))
    n_labeled = len(labeled.indices) if labeled is not None and has_labels else 0
    n_passes = _n_unlabeled(job)
    n_models = 1
    if job.selecting_images is not None and job.setup.trains_by_gradient:
        n_epochs = job.setup.optim.epochs * job.n_rounds
        n_passes += n_epochs * len(job.selecting_images.indices)
    if job.setup.role == "teacher" and job.setup.method_name not in ("ridge", "zeroshot"):
        n_passes += n_labeled * (n_zero_shot + 2)  # ridge, and the teacher itself
    if job.test is not None:
        n_models += n_zero_shot
        if job.teacher is not None and has_labels:  # a ridge regression on the labels alone
            n_models += 1
            n_passes += n_labeled
        n_passes += n_models * len(job.test.indices)
    if _has_one_pass_first(job) and job.setup.recipe.data.validation is not None:
        n_passes += len(job.setup.images.drawn_validation().indices)
    if job.setup.recipe.logit_adjustment is not None:
        pool = job.setup.images.load("unlabeled")
        n_pool = 0 if pool is None else len(pool.indices)
        n_passes += n_models * min(MAX_ADJUSTMENT_IMAGES, n_pool)
    return n_passes


def _n_unlabeled(job: Job) -> int:
    """The number of unlabeled images that a student and its teacher classify, for each pass.

    A student is measured on them if there are no test images. Two students are compared on them if
    there are no validation images.
    """
    if job.teacher is None:
        return 0
    is_compared = _has_one_pass_first(job) and job.setup.recipe.data.validation is None
    n_passes = int(job.test is None) + int(is_compared)
    sample = unlabeled_sample(job.setup.images) if n_passes else None
    return 0 if sample is None else n_passes * len(sample[0].indices)


def _has_one_pass_first(job: Job) -> bool:
    """Whether the job's student is one of two that are compared: of one pass, and trained."""
    return job.teacher is not None and job.setup.recipe.needed_student().one_pass_first


def _seconds_per_image(model: MethodModel, images: Images) -> float:
    """Times a model's pass over one batch of images, which this process decodes."""
    sample = images.spread(FORWARD_BATCH)
    seconds = 0.0
    for _ in range(2):  # the first one includes one-time work
        began = time.perf_counter()
        for batch, _ in evaluation_batches(
            sample.source,
            sample.indices,
            preprocess=model.preprocess,
            batch_size=FORWARD_BATCH,
            n_workers=0,
            device=model.device,
        ):
            model.forward_features(batch).cpu()  # waits until a GPU has finished
        seconds = time.perf_counter() - began
    return seconds / len(sample.indices)
