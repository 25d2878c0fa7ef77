"""Confusions and calibration bins of logits on labeled test images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdedge.evaluation.accuracy import N_BINS
from kdedge.results import CalibrationBin, EvalDetails


def evaluation_details(
    logits: Tensor, labels: Tensor, *, class_names: Sequence[str]
) -> EvalDetails:
    """Counts confusions, and predictions by confidence.

    Args:
        logits: [N, C] float32, scaled, finite; N at least 1.
        labels: [N] int64, positions in `class_names`.
        class_names: all C names, in class-list order.
    """
    logits, labels = logits.detach().float().cpu(), labels.detach().cpu()
    predicted = logits.argmax(dim=1)
    return EvalDetails(
        class_names=tuple(class_names),
        n_images=len(labels),
        confusion=_confusion(labels, predicted, n_classes=len(class_names)),
        bins=_bins(logits, labels),
        right="".join("1" if is_right else "0" for is_right in (predicted == labels).tolist()),
    )


def _confusion(
    labels: Tensor, predicted: Tensor, *, n_classes: int
) -> tuple[tuple[int, int, int], ...]:
    pairs, counts = torch.unique(labels * n_classes + predicted, return_counts=True)
    return tuple(
        (pair // n_classes, pair % n_classes, n)
        for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True)
    )


def _bins(logits: Tensor, labels: Tensor) -> tuple[CalibrationBin, ...]:
    """The bins of the calibration error, computed as in torchmetrics.

    Sums are float32. A confidence that rounds to 1 in float32 has its own bin, so there may be
    N_BINS + 1 bins.
    """
    confidences, predicted = logits.double().softmax(dim=1).max(dim=1)
    confidences = confidences.float()
    edges = torch.linspace(0, 1, N_BINS + 1)
    places = torch.bucketize(confidences, edges, right=True) - 1  # [N], 0 to N_BINS
    n_images, confidence, n_right = (
        torch.zeros(N_BINS + 1).scatter_add_(0, places, values)
        for values in (torch.ones_like(confidences), confidences, (predicted == labels).float())
    )
    return tuple(
        CalibrationBin(
            n_images=int(n_images[i]),
            # A float32 mean of values up to 1 may exceed 1 by rounding
            confidence_percent=min(100.0, 100 * float(confidence[i] / n_images[i])),
            accuracy_percent=100 * float(n_right[i] / n_images[i]),
        )
        for i in n_images.nonzero().flatten().tolist()
    )
