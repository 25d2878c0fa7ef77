"""Detects a teacher that did not learn, by references on its labeled images that take seconds.

The references are zero-shot CLIP, zero-shot CLIP with balanced classes, and a ridge regression by
leave-one-out (`methods/ridge.py`). A trained teacher did not learn if its accuracy on its own
training images, as a mean over classes, is lower than the accuracy of a reference.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from kdedge.clip.logit_adjustment import find_offsets
from kdedge.evaluation.accuracy import accuracy_result
from kdedge.files import write_json
from kdedge.records.record import read_record
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import MethodModel
from kdedge.training.closed_form import ridge_on_labels
from kdedge.training.job import Job, zero_shot_model

log = logging.getLogger(__name__)


def reference_accuracies(run: RunFolder, job: Job) -> dict[str, float]:
    """The accuracies of `zeroshot` and `ridge` on a teacher's labeled images.

    They are measured once, logged, and stored in the teacher's run.

    Returns:
        Name of a method -> accuracy in percent, mean over classes. Empty if not every class has
        labels, or if the teacher itself is one of the two methods.
    """
    if run.references.exists():
        return read_record(dict[str, float], run.references)
    images = job.truly_labeled
    if images is None or not images.has_labels_of(len(job.setup.classes.names)):
        return {}
    if job.setup.method_name in ("ridge", "zeroshot"):
        return {}
    accuracies: dict[str, float] = {}
    parts = []
    if job.setup.backbone.has_text_encoder:
        logits, truth = _labeled_logits(job, zero_shot_model(job))
        shares = torch.bincount(truth, minlength=logits.shape[1]).double() / len(truth)
        accuracies["zeroshot"] = _mean_over_classes(job, logits, truth)
        balanced = _mean_over_classes(job, logits - find_offsets(logits, shares), truth)
        parts.append(f"zero-shot CLIP {accuracies['zeroshot']:.1f} %, in balance {balanced:.1f} %")
    _, percent = ridge_on_labels(job.setup, images)
    if percent is not None:
        accuracies["ridge"] = percent
        parts.append(f"ridge {percent:.1f} %, each image left out once")
    if parts:
        log.info(f"On {len(images.indices)} labeled images, mean over classes: {', '.join(parts)}.")
        write_json(run.references, accuracies)
    return accuracies


def compare_with_references(run: RunFolder, job: Job, model: MethodModel) -> dict[str, float]:
    """The result of `reference_accuracies` and the trained teacher's own accuracy, as `trained`.

    Args:
        run: the teacher's run, which stores the result for later students.
        job: the teacher's job.
        model: the trained teacher.
    """
    accuracies = reference_accuracies(run, job)
    if accuracies and "trained" not in accuracies:
        accuracies["trained"] = _mean_over_classes(job, *_labeled_logits(job, model))
        write_json(run.references, accuracies)
    return accuracies


def _labeled_logits(job: Job, model: MethodModel) -> tuple[Tensor, Tensor]:
    """Logits [n, C] of the labeled images, and their classes [n]."""
    images = job.labeled
    labels = job.labels
    assert images is not None  # the teacher learns from labels
    # A student learns logits out of balance, and other recipes, with other priors, use the result
    logits = model.logits_of(images, what="looking at the labeled images", without_offsets=True)
    return logits, torch.tensor([labels[i] for i in images.indices])


def _mean_over_classes(job: Job, logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits in percent, mean over classes."""
    names = job.setup.classes.names
    return accuracy_result(logits, labels, class_names=names, split="all").mean_over_classes
