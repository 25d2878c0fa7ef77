"""Computes logits and accuracy of a model on a recipe's images, preprocessed as on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kdedge.data.images import Images
from kdedge.data.loader import evaluation_batches
from kdedge.errors import DivergedError
from kdedge.evaluation.accuracy import calibration_error_percent, evaluate, evaluation_details
from kdedge.progress import progress
from kdedge.results import EvalDetails, EvalResult, Selection
from kdedge.runs.protocol import LogitModel, Model
from kdedge.setup.classes import Classes

EVALUATION_BATCH = 100
"""Images per batch without gradients, as in the methods' public code."""


@runtime_checkable
class AnswersImages(Protocol):
    """Computes logits from images, not from pixels: a file of probabilities."""

    def logits_of(self, images: Images) -> Tensor:
        """[N, C] float32, on the CPU, in the images' order."""
        ...


@torch.no_grad()
def compute_logits(model: LogitModel | AnswersImages, images: Images, *, what: str) -> Tensor:
    """Logits of all images against all classes, without crops or flips.

    Args:
        model: the model; it preprocesses images in its own way.
        images: the images; labels are not needed.
        what: the work's name, for progress.

    Returns:
        [N, C] float32, on the CPU, in the images' order.
    """
    if isinstance(model, AnswersImages):
        return model.logits_of(images)
    logits: list[Tensor] = []
    batches = evaluation_batches(
        images.source,
        images.indices,
        preprocess=model.preprocess,
        batch_size=EVALUATION_BATCH,
        n_workers="auto",
        device=model.device,
    )
    n_done = 0
    with progress(what, len(images.indices), unit="images") as advance:
        for batch, indices in batches:
            logits.append(model.logits(batch).cpu())
            n_done += len(indices)
            advance(n_done)
    return torch.cat(logits)


def finite_logits(model: LogitModel | AnswersImages, images: Images, *, what: str) -> Tensor:
    """Logits as `compute_logits` gives them.

    Raises:
        DivergedError: a logit is not finite.
    """
    logits = compute_logits(model, images, what=what)
    n_bad = int((~logits.isfinite().all(dim=1)).sum())
    if n_bad:
        raise DivergedError(
            f"The model's scores of {n_bad} of {len(logits)} images are not finite.\n"
            "  Its training diverged: train again with a lower optim.lr or optim.precision: fp32."
        )
    return logits


def predict_logits(model: Model | AnswersImages, images: Images) -> tuple[Tensor, Tensor]:
    """Logits of all images against all classes, and their labels.

    Returns:
        [N, C] float32 and [N] int64, on the CPU, in the images' order.
    """
    logits = compute_logits(model, images, what="evaluating images")
    labels = [images.source.items[index].label for index in images.indices]
    return logits, torch.tensor(labels, dtype=torch.int64)


def measure(
    model: Model | AnswersImages,
    images: Images,
    classes: Classes,
    *,
    selection: Selection,
    temperature: float | None = None,
) -> tuple[EvalResult, EvalDetails]:
    """Evaluates a model on labeled images; base and novel images among their own names.

    Args:
        model: a model of these classes.
        images: images with labels.
        classes: the class list and its split.
        selection: how the model's epoch was chosen, for the record.
        temperature: also measure the calibration error of logits divided by it.
    """
    logits, labels = predict_logits(model, images)
    return measure_logits(
        logits, labels, images, classes, selection=selection, temperature=temperature
    )


def measure_logits(
    logits: Tensor,
    labels: Tensor,
    images: Images,
    classes: Classes,
    *,
    selection: Selection,
    temperature: float | None = None,
) -> tuple[EvalResult, EvalDetails]:
    """Evaluates the logits from `predict_logits` for these images, as `measure` does."""
    result = evaluate(
        logits, labels, class_names=classes.names, split=classes.split, selection=selection
    )
    result = replace(result, images_hash=images.hash_with(classes.names))
    if temperature is not None:
        error = calibration_error_percent(logits / temperature, labels)
        result = replace(result, temperature=temperature, calibrated_ece_percent=error)
    return result, evaluation_details(logits, labels, class_names=classes.names)
