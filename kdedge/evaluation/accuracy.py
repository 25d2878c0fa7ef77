"""Accuracy and calibration of logits on labeled test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdedge.data.split import base_novel
from kdedge.inference.agreement import class_accuracies
from kdedge.records.evaluation import (
    CalibrationBin,
    EvalDetails,
    EvalResult,
    Selection,
    SplitName,
    ece_percent,
    harmonic_mean,
)
from kdedge.runtime.backend import softmax

# Confidence bins of the calibration error (Guo et al. 2017, arXiv:1706.04599).
N_BINS = 15


def accuracy_result(
    logits: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str],
    split: SplitName,
    selection: Selection = "last",
) -> EvalResult:
    """Computes accuracies and calibration error from logits and labels.

    Base and novel accuracy follow the base-to-novel protocol (CoCoOp, arXiv:2203.05557): base test
    images compete among base names only, novel ones among novel names only. Slicing the logits of
    all classes is exact, as a class's logit does not depend on other classes.

    Args:
        logits: [N, C] float32, finite; N at least 1: `scale * image_features @ class_vectors.T`.
        labels: [N] int64, positions in `class_names`.
        class_names: all C names, in class-list order.
        split: `base-to-novel` adds base and novel accuracy and their harmonic mean.
        selection: how the weights were chosen, for the record.
    """
    logits = logits.detach().float().cpu()
    labels = labels.detach().cpu()
    base = novel = mean = None
    if split == "base-to-novel":
        in_half = _is_right(logits, labels, split)
        base_classes, novel_classes = base_novel(len(class_names))
        base = _percent_of(in_half[_is_in(base_classes, labels)])
        novel = _percent_of(in_half[_is_in(novel_classes, labels)])
        mean = None if base is None or novel is None else harmonic_mean(base, novel)
    is_right = logits.argmax(dim=1) == labels  # [N]
    return EvalResult(
        split=split,
        selection=selection,
        n_images=len(labels),
        all=_percent(is_right),
        base=base,
        novel=novel,
        harmonic_mean=mean,
        ece_percent=calibration_error_percent(logits, labels),
        per_class=class_accuracies(is_right.numpy(), labels.numpy(), class_names),
        largest_class_percent=100 * int(torch.bincount(labels).max()) / len(labels),
    )


def calibration_error_percent(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the softmax over all classes, L1, 15 bins, in percent.

    Args:
        logits: [N, C], scaled. The softmax runs in float64, so that a row adds up to 1.
        labels: [N] int64.
    """
    return ece_percent(_bins(logits, labels), len(labels))


def _percent(is_right: Tensor) -> float:
    """Percent of True in a [N] bool tensor, computed exactly from integer counts."""
    return 100 * int(is_right.sum()) / len(is_right)


def _percent_of(is_right: Tensor) -> float | None:
    """As `_percent`; None if there are no images."""
    return _percent(is_right) if len(is_right) else None


def _is_in(part: range, labels: Tensor) -> Tensor:
    """[N] bool: which labels are of a range of classes."""
    return (labels >= part.start) & (labels < part.stop)


def _is_right(logits: Tensor, labels: Tensor, split: SplitName) -> Tensor:
    """[N] bool: which images are right among all names, or among those of their own half."""
    n_classes = logits.shape[1]
    is_right = torch.zeros(len(labels), dtype=torch.bool)
    parts = base_novel(n_classes) if split == "base-to-novel" else (range(n_classes),)
    for part in parts:
        of_part = _is_in(part, labels)
        predicted = logits[of_part, part.start : part.stop].argmax(dim=1) + part.start
        is_right[of_part] = predicted == labels[of_part]
    return is_right


def evaluation_details(
    logits: Tensor, labels: Tensor, *, class_names: Sequence[str], split: SplitName
) -> EvalDetails:
    """Counts confusions, and predictions by confidence; records which images are right.

    Args:
        logits: [N, C] float32, scaled, finite; N at least 1.
        labels: [N] int64, positions in `class_names`.
        class_names: all C names, in class-list order.
        split: as for `accuracy_result`.
    """
    logits = logits.detach().float().cpu()
    labels = labels.detach().cpu()
    predicted = logits.argmax(dim=1)
    n_classes = len(class_names)
    pairs, counts = torch.unique(labels * n_classes + predicted, return_counts=True)
    counted = zip(pairs.tolist(), counts.tolist(), strict=True)
    return EvalDetails(
        class_names=tuple(class_names),
        n_images=len(labels),
        confusion=tuple((*divmod(pair, n_classes), n) for pair, n in counted),
        bins=_bins(logits, labels),
        right=_as_hex(_is_right(logits, labels, split)),
    )


def _as_hex(bits: Tensor) -> str:
    """The [N] bits as one hexadecimal number, in which the first bit is the highest."""
    padded = np.concatenate([np.zeros(-len(bits) % 8, np.bool_), bits.numpy()])
    return f"{int.from_bytes(np.packbits(padded).tobytes(), 'big'):x}"


def _bins(logits: Tensor, labels: Tensor) -> tuple[CalibrationBin, ...]:
    """The bins of the calibration error.

    As in torchmetrics, a confidence that rounds to 1 in float32 has its own bin, so there may be
    N_BINS + 1 bins.
    """
    confidences, predicted = logits.double().softmax(dim=1).max(dim=1)
    edges = torch.linspace(0, 1, N_BINS + 1)
    bin_indices = torch.bucketize(confidences.float(), edges, right=True) - 1  # [N], 0 to N_BINS

    def sums(values: Tensor) -> Tensor:
        """[N] -> [N_BINS + 1], the sum of each bin's values."""
        zeros = torch.zeros(N_BINS + 1, dtype=torch.float64)
        return zeros.scatter_add_(0, bin_indices, values)

    n_images = sums(torch.ones_like(confidences))
    confidence = sums(confidences)
    n_right = sums((predicted == labels).double())
    return tuple(
        CalibrationBin(
            n_images=int(n_images[i]),
            # A mean of values up to 1 may exceed 1 by rounding
            confidence_percent=min(100.0, 100 * float(confidence[i] / n_images[i])),
            accuracy_percent=100 * float(n_right[i] / n_images[i]),
        )
        for i in n_images.nonzero().flatten().tolist()
    )


# Temperatures from 1 / `LARGEST` to `LARGEST` are searched. The range is our choice: no CLIP
# needs more, and a root outside of it means that all predictions are right, or that none is.
LARGEST = 20.0

_N_HALVINGS = 60


def temperature_of_labels(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.integer[Any]]
) -> float | None:
    """The temperature with the lowest negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: [N, C], finite.
        labels: [N], positions of the classes.

    Returns:
        The temperature; None if it is outside of the searched range, as if all images are right.
    """
    logits = logits.astype(np.float64)
    label_logit = logits[np.arange(len(labels)), labels].mean()

    def slope(inverse: float) -> float:
        return float((softmax(inverse * logits) * logits).sum(axis=1).mean() - label_logit)

    return _find_root(slope)


def temperature_of_share(logits: npt.NDArray[np.float32], share: float) -> float | None:
    """The temperature at which the mean confidence equals a given share, from 0 to 1.

    Args:
        logits: [N, C], finite.
        share: what the mean of each image's highest softmax should be.

    Returns:
        The temperature; None if it is outside of the searched range, as for a share of 1.
    """
    logits = logits.astype(np.float64)

    def excess(inverse: float) -> float:
        return float(softmax(inverse * logits).max(axis=1).mean()) - share

    return _find_root(excess)


def _find_root(increasing: Callable[[float], float]) -> float | None:
    """Returns 1 / b for the root b of an increasing function; None if b is out of range."""
    low, high = -np.log(LARGEST), np.log(LARGEST)
    if not increasing(float(np.exp(low))) < 0 < increasing(float(np.exp(high))):
        return None
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        if increasing(float(np.exp(middle))) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp(-(low + high) / 2))
