"""Tests of whether recent observations have another mean than a reference; exact tail sums."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


class MeanTest:
    """Hotelling's two-sample T-squared test of a mean, with the covariance of a reference.

    For normal observations the p-value is exact: with n reference rows of k values and the mean of
    W further ones, T2 = d' S^-1 d / (1/n + 1/W), and T2 (n - k) / (k (n - 1)) has the distribution
    F(k, n - k). Source: Hotelling 1931, "The generalization of Student's ratio", section 3; the
    covariance S is the reference's alone.

    Args:
        reference: [n, k], independent rows, n > k.
    """

    def __init__(self, reference: npt.NDArray[np.float64]) -> None:
        self._n, self._k = reference.shape
        self.mean = reference.mean(axis=0)
        covariance = np.atleast_2d(np.cov(reference, rowvar=False))
        # A value that never varies in the reference would make every later one infinitely far
        floor = max(1e-12, 1e-6 * float(np.trace(covariance)) / self._k)
        self._precision = np.linalg.inv(covariance + floor * np.eye(self._k))

    def p_value(self, observations: npt.NDArray[np.float64]) -> float:
        """Probability of a mean at least this far away if nothing has changed: [W, k] -> 0 to 1."""
        distance = observations.mean(axis=0) - self.mean
        t_squared = float(distance @ self._precision @ distance) / (
            1 / self._n + 1 / len(observations)
        )
        ratio = t_squared * (self._n - self._k) / (self._k * (self._n - 1))
        return f_tail(ratio, self._k, self._n - self._k)


def f_tail(ratio: float, k: int, m: int) -> float:
    """P(F > ratio) for F(k, m): the regularized incomplete beta function at m / (m + k ratio).

    Computed by its continued fraction: Abramowitz and Stegun 1964, 26.5.8 and 26.6.2.
    """
    x = m / (m + k * ratio)
    return _beta_share(x, m / 2, k / 2)


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _beta_share(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log1p(-x)) / a
    value = 1.0
    for i in range(30 + int(4 * max(a, b) ** 0.5), 0, -1):  # from the innermost fraction outwards
        even = i * (b - i) * x / ((a + 2 * i - 1) * (a + 2 * i))
        odd = -(a + i - 1) * (a + b + i - 1) * x / ((a + 2 * i - 2) * (a + 2 * i - 1))
        value = 1 + odd / (1 + even / value)
    return min(1.0, front / value)


def binomial_tail(count: int, n: int, share: float) -> float:
    """P(X >= count) for a binomial X of n trials."""
    terms = (math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(count, n + 1))
    return min(1.0, math.fsum(terms))
