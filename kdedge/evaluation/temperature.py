"""Fits the temperature that logits are divided by, so that scores are calibrated.

With `b = 1 / T`, the derivative of the mean negative log-likelihood of `softmax(b z)` is the mean
of `E_p[z] - z_label`, and the derivative of the mean confidence is positive: both equations have
one root, which bisection finds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.runtime.backend import softmax

LARGEST = 20.0
"""Temperatures from 1 / `LARGEST` to `LARGEST` are searched. The range is our choice: no CLIP's
scores need more, and a root outside of it means that every answer is right, or none is."""

_N_HALVINGS = 60


def temperature_of_labels(
    logits: npt.NDArray[np.float32], labels: npt.NDArray[np.integer[Any]]
) -> float | None:
    """The temperature with the lowest negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: [N, C], finite.
        labels: [N], positions of the classes.

    Returns:
        The temperature; None if it is outside of the searched range, as when all are right.
    """
    logits = logits.astype(np.float64)
    of_label = logits[np.arange(len(labels)), labels].mean()

    def slope(inverse: float) -> float:
        return float((softmax(inverse * logits) * logits).sum(axis=1).mean() - of_label)

    return _root(slope)


def temperature_of_share(logits: npt.NDArray[np.float32], share: float) -> float | None:
    """The temperature at which the mean confidence is a share, from 0 to 1.

    Args:
        logits: [N, C], finite.
        share: wanted mean over images of the highest softmax.

    Returns:
        The temperature; None if it is outside of the searched range, as for a share of 1.
    """
    logits = logits.astype(np.float64)
    return _root(lambda inverse: float(softmax(inverse * logits).max(axis=1).mean()) - share)


def _root(ascending: Callable[[float], float]) -> float | None:
    """`1 / b` of the root of a function of b that ascends."""
    low, high = -np.log(LARGEST), np.log(LARGEST)
    if not ascending(float(np.exp(low))) < 0 < ascending(float(np.exp(high))):
        return None
    for _ in range(_N_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if ascending(float(np.exp(middle))) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))
