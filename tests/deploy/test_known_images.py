"""The limit that a share of known images reaches."""

from __future__ import annotations

import numpy as np
import pytest

from kdedge.deploy.known_images import fit_limits, least_images


def logits_of(scores: np.ndarray) -> np.ndarray:
    """Logits [N, 3] whose largest one is the score."""
    return np.stack([scores - 1, scores, scores - 3], axis=1).astype(np.float32)


@pytest.mark.parametrize("share", [50.0, 80.0, 95.0, 99.0, 99.9])
def test_the_limit_keeps_the_share_with_the_fewest_images(share: float) -> None:
    """With one image less, even the lowest score is no limit."""
    n_images = least_images(share)
    assert (n_images + 1) * (100 - share) / 100 == pytest.approx(1, abs=0.9)
    scores = np.random.default_rng(0).permutation(n_images).astype(np.float32)
    found = fit_limits(logits_of(scores), share)
    assert found is not None
    assert found.limit == 0
    assert fit_limits(logits_of(scores[1:]), share) is None


@pytest.mark.parametrize("n_images", [19, 20, 39, 1000])
def test_a_further_known_image_is_below_the_limit_as_often_as_wanted(n_images: int) -> None:
    """The average over 400 draws is exact to a point (two standard deviations)."""
    rng = np.random.default_rng(1)
    below = []
    for _ in range(400):
        found = fit_limits(logits_of(rng.normal(0, 1, n_images)), 95.0)
        assert found is not None
        below.append((rng.normal(0, 1, 200).astype(np.float32) < found.limit).mean())
    # k / (N + 1) with k = floor(0.05 (N + 1)) is 5 % for these N, but for 20: 1 of 21
    assert np.mean(below) == pytest.approx(
        np.floor(0.05 * (n_images + 1)) / (n_images + 1), abs=1e-2
    )


def test_an_image_without_finite_logits_has_no_part_in_it() -> None:
    scores = np.arange(200, dtype=np.float32)
    logits = logits_of(scores)
    bad = np.full((50, 3), [np.nan, np.inf, -np.inf], np.float32)
    assert fit_limits(np.concatenate([bad, logits]), 95.0) == fit_limits(logits, 95.0)
    assert fit_limits(bad, 95.0) is None


def test_percentiles_ascend_from_the_lowest_score_to_the_highest() -> None:
    scores = np.random.default_rng(2).normal(0, 3, 777).astype(np.float32)
    found = fit_limits(logits_of(scores), 90.0)
    assert found is not None
    assert found.percentiles[0] == scores.min()
    assert found.percentiles[100] == scores.max()
    assert list(found.percentiles) == sorted(found.percentiles)
    assert found.percentiles[50] == pytest.approx(np.median(scores), abs=1e-6)
