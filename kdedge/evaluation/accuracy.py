"""Accuracy and calibration of logits on labeled test images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdedge.data.split import base_novel
from kdedge.errors import DataError, DivergedError, MissingPackage, ShapeError
from kdedge.results import EvalResult, Selection, Split, harmonic_mean

N_BINS = 15
"""Confidence bins of the calibration error (Guo et al. 2017, arXiv:1706.04599)."""


def evaluate(
    logits: Tensor,
    labels: Tensor,
    *,
    class_names: Sequence[str],
    split: Split,
    selection: Selection = "last",
) -> EvalResult:
    """Computes accuracies and calibration error from logits and labels.

    Base and novel accuracy follow the base-to-novel protocol (CoCoOp, arXiv:2203.05557): base test
    images compete among base names only, novel ones among novel names only. Slicing the logits of
    all classes is exact, as a class's logit does not depend on other classes.

    Args:
        logits: [N, C] float32, scaled: `scale * image_features @ class_vectors.T`.
        labels: [N] int64, positions in `class_names`.
        class_names: all C names, in class-list order.
        split: `base-to-novel` adds base and novel accuracy and their harmonic mean.
        selection: how the weights were chosen, for the record.

    Raises:
        DataError: there is no image, or a label is not a position in the class list.
        ShapeError: the shapes of logits, labels and names do not match.
        DivergedError: a logit is not finite.
    """
    logits, labels = logits.detach().float().cpu(), labels.detach().cpu()
    _check(logits, labels, n_classes=len(class_names))
    base = novel = mean = None
    if split == "base-to-novel":
        base, novel = (
            _accuracy_within(logits, labels, part) for part in base_novel(len(class_names))
        )
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
        per_class=_per_class(is_right, labels, class_names),
        largest_class_percent=100 * int(torch.bincount(labels).max()) / len(labels),
    )


def calibration_error_percent(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error of the softmax over all classes, L1, 15 bins, in percent.

    Args:
        logits: [N, C], scaled. The softmax runs in float64, so that a row adds up to 1.
        labels: [N] int64.
    """
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error
    except ImportError as error:
        raise MissingPackage(
            "torchmetrics", extra="train", purpose="The calibration error"
        ) from error
    n_classes = logits.shape[1]
    if n_classes == 1:
        return 0.0  # always confident and correct; torchmetrics needs at least two classes
    probabilities = logits.double().softmax(dim=1)
    share = multiclass_calibration_error(
        probabilities, labels, num_classes=n_classes, n_bins=N_BINS, norm="l1"
    )
    return min(100.0, 100 * float(share))


def _check(logits: Tensor, labels: Tensor, *, n_classes: int) -> None:
    if logits.ndim != 2 or logits.shape[1] != n_classes or labels.shape != logits.shape[:1]:
        raise ShapeError(
            f"Logits {list(logits.shape)} and labels {list(labels.shape)} do not fit {n_classes}"
            f" class names; expected [N, {n_classes}] and [N].\n"
            "  Evaluate with the class list that the model was made for."
        )
    if len(labels) == 0:
        raise DataError("There is no test image to evaluate on.\n  Check data.test in the recipe.")
    wrong = labels[(labels < 0) | (labels >= n_classes)]
    if len(wrong):
        raise DataError(
            f"Label {int(wrong[0])} is not a position in the class list of {n_classes} names"
            f" ({len(wrong)} images have such labels).\n"
            "  Evaluate with the class list that the labels were made for."
        )
    n_bad = int((~logits.isfinite().all(dim=1)).sum())
    if n_bad:
        raise DivergedError(
            f"The model's scores are NaN or infinity for {n_bad} of {len(labels)} test images.\n"
            "  Its training diverged: train again with a lower optim.lr, optim.precision: fp32 or"
            " optim.clip_grad_norm: 1.0."
        )


def _percent(is_right: Tensor) -> float:
    """Percent of True in a [N] bool tensor, computed exactly from integer counts."""
    return 100 * int(is_right.sum()) / len(is_right)


def _accuracy_within(logits: Tensor, labels: Tensor, part: range) -> float | None:
    """Accuracy of the part's images among the part's classes, a contiguous range."""
    is_member = (labels >= part.start) & (labels < part.stop)
    if not bool(is_member.any()):
        return None
    predicted = logits[is_member, part.start : part.stop].argmax(dim=1) + part.start
    return _percent(predicted == labels[is_member])


def _per_class(
    is_right: Tensor, labels: Tensor, class_names: Sequence[str]
) -> dict[str, float | None]:
    n_images = torch.bincount(labels, minlength=len(class_names)).tolist()
    n_right = torch.bincount(labels[is_right], minlength=len(class_names)).tolist()
    return {
        name: 100 * right / n if n else None
        for name, right, n in zip(class_names, n_right, n_images, strict=True)
    }
