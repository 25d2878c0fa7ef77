"""Cheap baselines on the teacher's labeled images, to find a teacher that did not learn.

They take seconds: zero-shot CLIP, the same in balance, and a ridge regression by leave-one-out
(`methods/ridge.py`), as means over classes. A trained teacher did not learn if it ends below one of
them on the images that it was trained on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import Tensor

from kdedge.data.balance import find_offsets
from kdedge.evaluation.accuracy import accuracy_result
from kdedge.files import read_json, write_json
from kdedge.methods import ridge
from kdedge.runs.folder import RunFolder
from kdedge.runs.measure import LogitModel, compute_logits
from kdedge.setup.method import MethodChoice
from kdedge.training.closed_form import fit_now
from kdedge.training.job import Job, TrainingData, zero_shot_model

log = logging.getLogger(__name__)

_FILE = "quick_look.json"


def baseline_accuracies(job: Job) -> dict[str, float]:
    """Accuracies of `zeroshot` and `ridge` on a teacher's labeled images, and logs them.

    Args:
        job: the teacher's.

    Returns:
        Name of a method -> percent, mean over classes; empty where not every class has labels, or
        the teacher is one of these two itself.
    """
    labels = job.data.labels
    all_labeled = labels is not None and len(set(labels.values())) == len(job.classes.names)
    if not all_labeled or job.choice.name in ("ridge", "zeroshot"):
        return {}
    accuracies: dict[str, float] = {}
    parts = []
    if job.setup.backbone.has_texts:
        logits, truth = _answers(job, zero_shot_model(job))
        shares = torch.bincount(truth, minlength=logits.shape[1]).double() / len(truth)
        accuracies["zeroshot"] = _mean_over_classes(job, logits, truth)
        balanced = _mean_over_classes(job, logits - find_offsets(logits, shares), truth)
        parts.append(f"zero-shot CLIP {accuracies['zeroshot']:.1f} %, in balance {balanced:.1f} %")
    choice = MethodChoice("ridge", ridge, ridge.Settings(), job.choice.optim, job.setup.role)
    probe = Job(replace(job.setup, choice=choice), TrainingData(job.data.images))
    accuracies["ridge"] = float(fit_now(probe)["leave_one_out_percent"])
    parts.append(f"ridge {accuracies['ridge']:.1f} % by leave-one-out")
    n_images = len(job.training_images.indices)
    log.info("On %d labeled images, mean over classes: %s.", n_images, ", ".join(parts))
    return accuracies


def save_baselines(run: RunFolder, accuracies: dict[str, float]) -> None:
    """Writes the result of `baseline_accuracies` to the teacher's run."""
    if accuracies:
        write_json(run.path / _FILE, accuracies)


def compare_with_baselines(run: RunFolder, job: Job, model: LogitModel) -> dict[str, float]:
    """The result of `baseline_accuracies` and the trained teacher's own accuracy, as `trained`.

    Args:
        run: the teacher's, where both are written; its next student reads them.
        job: the teacher's.
        model: the trained teacher.
    """
    file = run.path / _FILE
    accuracies: dict[str, float] = read_json(file) if file.exists() else baseline_accuracies(job)
    if accuracies and "trained" not in accuracies:
        accuracies["trained"] = _mean_over_classes(job, *_answers(job, model))
        save_baselines(run, accuracies)
    return accuracies


def _answers(job: Job, model: LogitModel) -> tuple[Tensor, Tensor]:
    """Logits [n, C] of the labeled images, and their classes [n]."""
    labels = job.training_images.labels
    assert labels is not None  # it is a teacher that learns from labels
    logits = compute_logits(model, job.training_images, what="looking at the labeled images")
    return logits, torch.tensor([labels[i] for i in job.training_images.indices])


def _mean_over_classes(job: Job, logits: Tensor, labels: Tensor) -> float:
    names = job.classes.names
    return accuracy_result(logits, labels, class_names=names, split="all").mean_over_classes
