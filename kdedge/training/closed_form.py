"""Fits a method in closed form: passes over the images instead of training by gradients."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdedge.data.images import Images
from kdedge.distributed import ProcessGroup
from kdedge.loading.loader import evaluation_batches
from kdedge.loading.views import ORDER, random_stream
from kdedge.methods.base import ClosedFormData, ClosedFormMethod
from kdedge.runs.model import MethodModel
from kdedge.setup.role import RoleSetup
from kdedge.training.job import Job
from kdedge.training.loop.precision import MixedPrecision
from kdedge.training.output_store.store import FORWARD_BATCH

log = logging.getLogger(__name__)

_MAX_HELD_OUT = 1000
_N_STANDARDIZE, _N_LEAVE_ONE_OUT = 1000, 4096  # see `ClosedFormData`


def fit(job: Job) -> dict[str, Any]:
    """Fits a job's method; returns entries of the run's summary.

    Raises:
        DivergedError: features of an image are not finite.
    """
    if job.filler is not None:
        job.filler.fill()
    record = _fit(job)
    log.info(f"{job.setup.method_name}: {record.pop('summary')}.")
    return {"closed_form": record}


def _fit(job: Job) -> dict[str, Any]:
    """Fits a job's method without a run; returns the record of `ClosedFormMethod.fit`."""
    assert isinstance(job.method, ClosedFormMethod)
    return job.method.fit(_closed_form_data(job))


def ridge_on_labels(setup: RoleSetup, images: Images) -> tuple[MethodModel, float | None]:
    """Fits a ridge regression on a role's backbone to labeled images only.

    Returns:
        The model, and its leave-one-out accuracy on these images in percent, mean over classes;
        None if most classes have one label.
    """
    job = Job(setup.with_method("ridge", "baseline"), labeled=images)
    percent: float | None = _fit(job)["leave_one_out_percent"]
    return job.model(), percent


def fit_seconds(job: Job) -> float:
    """Estimates the time of the passes over the images, from two passes over one batch.

    This process decodes the batch. The teacher's passes do not count if its features are stored.
    """
    images = job.training_images
    sample = list(images.indices[:FORWARD_BATCH])
    for _ in range(2):  # the first one includes one-time work
        began = time.perf_counter()
        for batch, positions in _batches(job, images, sample, n_workers=0):
            job.method.forward_features(batch).cpu()  # waits until a GPU has finished
            if job.teacher is not None and job.filler is None:
                _teacher_outputs(job, batch, positions)
        seconds = (time.perf_counter() - began) / len(sample)
    labeled = job.labeled if job.unlabeled is not None else None
    n_labeled = 0 if labeled is None else len(labeled.indices)
    return seconds * (len(images.indices) + n_labeled)


def _closed_form_data(job: Job) -> ClosedFormData:
    """The training data of a job for `ClosedFormMethod.fit`."""
    labeled = job.labeled
    labels = job.labels
    order = _shuffled(job, labeled)
    counts = torch.bincount(
        torch.tensor([labels[i] for i in order], dtype=torch.int64),
        minlength=len(job.setup.train_classes),
    )

    def labeled_part(part: slice) -> Iterator[tuple[Tensor, Tensor]]:
        if labeled is not None:
            for images, positions in _batches(job, labeled, order[part]):
                yield images, torch.tensor([labels[i] for i in positions])

    unlabeled = job.unlabeled
    if unlabeled is not None and labeled is not None:
        rest = unlabeled.without(labeled)
        unlabeled = rest if rest.indices else unlabeled  # a pool that is labeled whole
    shuffled = _shuffled(job, unlabeled)

    def unlabeled_part(part: slice, group: ProcessGroup) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        assert unlabeled is not None
        for images, positions in _batches(job, unlabeled, group.shard_of(shuffled[part])):
            yield (images, *_teacher_outputs(job, images, positions))

    return ClosedFormData(
        unlabeled_part,
        n_held_out=min(_MAX_HELD_OUT, len(shuffled) // 10),
        n_standardize=_N_STANDARDIZE,
        labeled=labeled_part,
        n_leave_one_out=_N_LEAVE_ONE_OUT,
        label_counts=counts,
        group=job.setup.workspace.group,
        autocast=MixedPrecision(job.setup.optim.precision, job.setup.device).autocast,
    )


def _shuffled(job: Job, images: Images | None) -> list[int]:
    """The images' positions in an order that the seed draws."""
    indices = [] if images is None else sorted(images.indices)
    order: list[int] = random_stream(job.setup.recipe.seed, 0, ORDER).permutation(indices).tolist()
    return order


def _batches(
    job: Job, images: Images, positions: Sequence[int], *, n_workers: int | None = None
) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches of images as in evaluation, with their positions."""
    return evaluation_batches(
        images.source,
        positions,
        preprocess=job.setup.backbone.preprocess,
        batch_size=FORWARD_BATCH,
        n_workers=job.setup.optim.n_workers if n_workers is None else n_workers,
        device=job.setup.device,
    )


def _teacher_outputs(job: Job, images: Tensor, positions: list[int]) -> tuple[Tensor, Tensor]:
    """The teacher's features and logits of a batch, from its store if there is one."""
    teacher = job.teacher
    assert teacher is not None  # the job is a student's
    if job.filler is not None:
        features = job.filler.store.read(positions, 1).to(job.setup.device)
    else:
        with torch.no_grad():
            features = teacher.teacher_features(images, job.setup.backbone.preprocess).float()
    keys = [job.training_images.source.items[position].key for position in positions]
    return features, teacher.teacher_logits(features, keys).float()
