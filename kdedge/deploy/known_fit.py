"""Fits Gaussians of known images, and the limits below which an image shows none of the classes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.errors import DataError
from kdedge.runtime.none_of_these import N_PERCENTILES, Gaussians, NoneBelow

N_FOLDS = 20
"""With ten, the covariance of nine tenths of the images is shrunk more than that of all, so that
distances are smaller: with features, 0.3 points too few images kept their class (benchmarks)."""


def fit_gaussians(
    outputs: npt.NDArray[np.float32], answers: npt.NDArray[np.integer[Any]]
) -> Gaussians:
    """A Gaussian for each class that was answered, with one covariance for all.

    The covariance is shrunk towards its mean variance, the more the fewer images there are (Ledoit
    and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4), so that fewer images than outputs do.

    Args:
        outputs: [N, O]; images whose outputs are not finite are left out.
        answers: [N], each image's class.

    Raises:
        DataError: all outputs are equal, or none is finite.
    """
    is_finite = np.isfinite(outputs).all(axis=1)
    values, answers = outputs[is_finite].astype(np.float64), answers[is_finite]
    classes, own = np.unique(answers, return_inverse=True)
    means = np.stack([values[own == c].mean(axis=0) for c in range(len(classes))] or [[]])
    centered = values - means[own] if len(values) else values
    n_images, n_outputs = centered.shape
    covariance = centered.T @ centered / max(1, n_images)
    variance = np.trace(covariance) / n_outputs
    if not variance > 0:
        raise DataError(
            '"None of these": the model gives the same outputs for all known images, or none that'
            " are finite.\n"
            "  Check data.unlabeled: it needs real images of the deployment."
        )
    apart = (covariance**2).sum() - n_outputs * variance**2  # squared distance to the target
    noise = ((centered**2).sum(axis=1) ** 2).sum() / n_images - (covariance**2).sum()
    share = 1.0 if apart <= 0 else min(1.0, max(0.0, noise / n_images / apart))
    shrunk = (1 - share) * covariance + share * variance * np.eye(n_outputs)
    variances, directions = np.linalg.eigh(shrunk)
    is_used = variances > variances.max() * n_outputs * np.finfo(np.float32).eps
    whitening = (directions[:, is_used] / np.sqrt(variances[is_used])).T
    return Gaussians(whitening, means @ whitening.T)


def fit_held_out(
    outputs: npt.NDArray[np.float32], answers: npt.NDArray[np.integer[Any]]
) -> tuple[Gaussians, ...]:
    """Gaussians for each fold of the images, fitted to those of the other folds.

    Image i is in fold `i % N_FOLDS`. Distances to Gaussians that an image has a part in are too
    small: they are those of images that the device has already seen.

    Args:
        outputs: [N, O].
        answers: [N], each image's class.
    """
    folds = np.arange(len(outputs)) % N_FOLDS
    parts = [folds != fold for fold in range(min(N_FOLDS, len(outputs)))]
    return tuple(fit_gaussians(outputs[part], answers[part]) for part in parts)


def held_out_scores(
    held_out: tuple[Gaussians, ...], outputs: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Scores of the images that `fit_held_out` took, of this or another file's outputs: [N]."""
    scores = np.empty(len(outputs))
    for fold, gaussians in enumerate(held_out):
        scores[fold::N_FOLDS] = gaussians.scores(outputs[fold::N_FOLDS])
    return scores


def fit_limits(scores: npt.NDArray[np.float64], share_percent: float) -> NoneBelow | None:
    """The score that a share of known images reaches.

    Of N known images, the limit is the score of the k-th lowest, `k = floor((1 - share) (N + 1))`:
    a further known image is below it with a probability of at most `k / (N + 1)` (conformal
    prediction, Vovk et al. 2005; arXiv:2107.07511, section 1.1).

    Args:
        scores: [N], finite, of a file on known images.
        share_percent: wanted share of known images that are not below the limit.

    Returns:
        The limit; None if there are too few images for one.
    """
    scores = np.sort(scores)
    position = math.floor((1 - share_percent / 100) * (len(scores) + 1) + 1e-9)
    if position < 1:
        return None
    percentiles = np.quantile(scores, np.linspace(0, 1, N_PERCENTILES))
    percentiles = np.maximum.accumulate(percentiles)  # rounding may turn equal ones around
    return NoneBelow(float(scores[position - 1]), tuple(map(float, percentiles)))


def least_images(share_percent: float, *, position: int = 1) -> int:
    """The fewest known images that a limit for this share can be fitted to: 19 for 95 %.

    Args:
        share_percent: wanted share of known images that are not below the limit.
        position: the limit is the score of at least this rank, from the lowest.
    """
    return math.ceil(position / (1 - share_percent / 100) - 1 - 1e-9)
