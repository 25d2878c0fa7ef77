"""Comparison of two models on the same images: agreement, softmax distances, worst images.

The reference is the float32 model; the other model is an exported file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DivergedError
from kdedge.records.evaluation import ParityResult, WorstImage
from kdedge.runtime.artifact import Head
from kdedge.runtime.backend import softmax

N_WORST = 10
_ROWS = 256  # images at once, so that many classes need little memory


def measure_parity(
    reference: npt.NDArray[Any],
    logits: npt.NDArray[Any],
    *,
    keys: Sequence[str],
    labels: Sequence[int | None],
    class_names: Sequence[str],
    images: str,
    runtime: str,
    head: Head,
) -> ParityResult:
    """Compares two models' logits image by image, independent of the images' order.

    An image with a logit that is not finite counts as a disagreement, as a wrong prediction and
    with the distance 1, so an overflow cannot improve any result.

    Args:
        reference: [N, C], the float32 model's logits, scaled; N at least 1.
        logits: [N, C], the file's logits, for the same images and class order.
        keys: N keys of the images.
        labels: N positions in `class_names`; None for an image without a label.
        class_names: C names.
        images: description of the images, for the record.
        runtime: the runtime that computed `logits`, such as "onnxruntime 1.24.4 CPU".
        head: with `argmax` the logits only rank classes, so there are no distances.

    Raises:
        DivergedError: the reference is not finite.
    """
    n_images = len(keys)
    assert reference.shape == logits.shape == (n_images, len(class_names))
    unusable = np.flatnonzero(~np.isfinite(reference).all(axis=1))
    if len(unusable):
        raise DivergedError(
            f"The float32 model gives NaN or infinity for {keys[unusable[0]]}, so no file can be"
            " compared with it.\n"
            "  Check the run's loss in metrics.jsonl, and train again with a lower optim.lr or"
            " optim.precision: fp32."
        )
    is_finite = np.isfinite(logits).all(axis=1)  # [N]
    expected = np.argmax(reference, axis=1)
    predicted = np.where(is_finite, np.argmax(logits, axis=1), -1)  # -1: no prediction
    distances = _softmax_distances(reference, logits, is_finite) if head == "scores" else None
    n_agree = int((predicted == expected).sum())
    labeled = [i for i, label in enumerate(labels) if label is not None]
    truth = np.array([labels[i] for i in labeled], dtype=np.int64)
    is_right = predicted[labeled] == truth
    n_right = int(is_right.sum())
    n_reference_right = int((expected[labeled] == truth).sum())

    def percent(n: int, of: int) -> float | None:
        return 100 * n / of if of else None  # one rounding: 98 of 100 is 98.0

    return ParityResult(
        n_images=n_images,
        n_labeled=len(labeled),
        n_nonfinite=int((~is_finite).sum()),
        agreement_percent=100 * n_agree / n_images,
        mean_softmax_distance=None if distances is None else math.fsum(distances) / n_images,
        max_softmax_distance=None if distances is None else max(distances),
        accuracy_percent=percent(n_right, len(labeled)),
        reference_accuracy_percent=percent(n_reference_right, len(labeled)),
        accuracy_drop=percent(n_reference_right - n_right, len(labeled)),
        worst=_worst_images(expected, predicted, distances, keys=keys, class_names=class_names),
        images=images,
        runtime=runtime,
        per_class=class_accuracies(is_right, truth, class_names) if labeled else {},
    )


def class_accuracies(
    is_right: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, float | None]:
    """The accuracy of each class, in percent; None for a class without images.

    Args:
        is_right: [N], whether each image's prediction is right.
        labels: [N], positions in `class_names`.
        class_names: all C names.
    """
    n_images = np.bincount(labels, minlength=len(class_names)).tolist()
    n_right = np.bincount(labels[is_right], minlength=len(class_names)).tolist()
    return {
        name: 100 * right / n if n else None
        for name, right, n in zip(class_names, n_right, n_images, strict=True)
    }


def _softmax_distances(
    reference: npt.NDArray[Any], logits: npt.NDArray[Any], is_finite: npt.NDArray[np.bool_]
) -> list[float]:
    """Total variation distance of the two softmaxes per image, 0-1: half the L1 distance."""
    distances: list[float] = []
    for start in range(0, len(logits), _ROWS):
        rows = slice(start, start + _ROWS)
        usable = np.where(is_finite[rows, None], logits[rows], 0)
        difference = np.abs(softmax(reference[rows]) - softmax(usable)).sum(axis=1) / 2
        # Sums of rounded terms may exceed 1 in the last digit
        distances += np.where(is_finite[rows], np.minimum(difference, 1.0), 1.0).tolist()
    return distances


def _worst_images(
    expected: npt.NDArray[np.intp],
    predicted: npt.NDArray[np.intp],
    distances: list[float] | None,
    *,
    keys: Sequence[str],
    class_names: Sequence[str],
) -> tuple[WorstImage, ...]:
    """The worst images: disagreements first, then by distance, then by key."""
    entries = []
    for i, key in enumerate(keys):
        distance = None if distances is None else distances[i]
        has_distance = distance is not None and distance > 0
        if predicted[i] == expected[i] and not has_distance:
            continue
        entries.append(
            WorstImage(
                image=key,
                reference_class=class_names[expected[i]],
                predicted_class=None if predicted[i] < 0 else class_names[predicted[i]],
                distance=distance,
            )
        )

    def order(entry: WorstImage) -> tuple[Any, ...]:
        agrees = entry.predicted_class == entry.reference_class
        distance = entry.distance or 0
        predicted_class = entry.predicted_class or ""
        return agrees, -distance, entry.image, entry.reference_class, predicted_class

    return tuple(sorted(entries, key=order)[:N_WORST])
