"""Accuracy of a method on labeled images, through the deployed path."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from kdedge._progress import progress
from kdedge.data.loader import evaluation_batches
from kdedge.eval_details import EvalDetails
from kdedge.evaluation.accuracy import evaluate
from kdedge.evaluation.details import evaluation_details
from kdedge.methods.protocol import Method, Teacher, WithoutClassVectors
from kdedge.results import EvalResult, Selection
from kdedge.runtime.preprocess import Preprocess
from kdedge.setup.classes import Classes
from kdedge.setup.images import Images

EVALUATION_BATCH = 100
"""Images a time without gradients, as the methods' public code does."""

Model = Method | Teacher | WithoutClassVectors
"""Whatever has logits over all classes."""


def logits_of(model: Model) -> Callable[[Tensor], Tensor]:
    """The function [B, 3, H, W] -> [B, C] of a model as it is now, over all classes.

    Class vectors are computed once. A model that is `WithoutClassVectors` has logits of its own.
    """
    if isinstance(model, WithoutClassVectors):
        return model.own_logits
    class_vectors = model.class_vectors()
    return lambda images: model.scale * model.forward_features(images) @ class_vectors.T


@torch.no_grad()
def all_logits(
    model: Model,
    images: Images,
    *,
    preprocess: Preprocess,
    device: torch.device,
    what: str,
) -> Tensor:
    """Logits of all images against all classes, without crops or flips.

    Args:
        model: as it is now.
        images: need no labels.
        preprocess: the model's.
        device: the model's.
        what: is done, for progress.

    Returns:
        [N, C] float32, on the CPU, in the images' order.
    """
    compute_logits = logits_of(model)
    logits: list[Tensor] = []
    batches = evaluation_batches(
        images.source,
        images.indices,
        preprocess=preprocess,
        batch_size=EVALUATION_BATCH,
        n_workers="auto",
        device=device,
    )
    n_done = 0
    with progress(what, len(images.indices)) as advance:
        for batch, indices in batches:
            logits.append(compute_logits(batch).cpu())
            n_done += len(indices)
            advance(n_done)
    return torch.cat(logits)


def predict_logits(
    model: Model,
    images: Images,
    *,
    preprocess: Preprocess,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Logits of all images against all classes, and their labels.

    Returns:
        [N, C] float32 and [N] int64, on the CPU, in the images' order.
    """
    logits = all_logits(
        model, images, preprocess=preprocess, device=device, what="evaluating images"
    )
    labels = [images.source.items[index].label for index in images.indices]
    return logits, torch.tensor(labels, dtype=torch.int64)


def measure(
    model: Model,
    images: Images,
    classes: Classes,
    *,
    preprocess: Preprocess,
    device: torch.device,
    selection: Selection,
) -> tuple[EvalResult, EvalDetails]:
    """Evaluates a model on labeled images: base and novel each against their own names."""
    logits, labels = predict_logits(model, images, preprocess=preprocess, device=device)
    result = evaluate(
        logits, labels, class_names=classes.names, split=classes.split, selection=selection
    )
    result = replace(result, is_own_split=images.is_own_split)
    return result, evaluation_details(logits, labels, class_names=classes.names)
