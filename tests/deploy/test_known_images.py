"""Gaussians of known images, and the limit that a share of them reaches."""

from __future__ import annotations

import numpy as np
import pytest

from kdedge.deploy.known_images import fit_gaussians, fit_limit, min_known_images
from kdedge.errors import DataError


@pytest.mark.parametrize("share", [50.0, 80.0, 95.0, 99.0, 99.9])
def test_the_limit_keeps_the_share_with_the_fewest_images(share: float) -> None:
    """With one image less, even the lowest score is no limit."""
    n_images = min_known_images(share)
    assert (n_images + 1) * (100 - share) / 100 == pytest.approx(1, abs=0.9)
    scores = np.random.default_rng(0).permutation(n_images)
    found = fit_limit(scores, share)
    assert found.limit == 0
    assert fit_limit(scores[1:], share) is None


@pytest.mark.parametrize("n_images", [19, 20, 39, 1000])
def test_a_further_known_image_is_below_the_limit_as_often_as_wanted(n_images: int) -> None:
    """The average over 400 draws is exact to a point (two standard deviations)."""
    rng = np.random.default_rng(1)
    below = []
    for _ in range(400):
        found = fit_limit(rng.normal(0, 1, n_images), 95.0)
        below.append((rng.normal(0, 1, 200) < found.limit).mean())
    # k / (N + 1) with k = floor(0.05 (N + 1)) is 5 % for these N, but for 20: 1 of 21
    assert np.mean(below) == pytest.approx(
        np.floor(0.05 * (n_images + 1)) / (n_images + 1), abs=1e-2
    )


def test_percentiles_ascend_from_the_lowest_score_to_the_highest() -> None:
    scores = np.random.default_rng(2).normal(0, 3, 777)
    found = fit_limit(scores, 90.0)
    assert found.percentiles[0] == scores.min()
    assert found.percentiles[100] == scores.max()
    assert list(found.percentiles) == sorted(found.percentiles)
    assert found.percentiles[50] == pytest.approx(np.median(scores), abs=1e-6)


def draw(n_images: int, n_outputs: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of three classes with one covariance; gives outputs, classes and the covariance."""
    rng = np.random.default_rng(3)
    mix = rng.normal(0, 1, (n_outputs, n_outputs))
    classes = rng.integers(0, 3, n_images)
    means = rng.normal(0, 5, (3, n_outputs))
    outputs = means[classes] + rng.normal(0, 1, (n_images, n_outputs)) @ mix.T
    return outputs.astype(np.float32), classes, mix @ mix.T


def test_distances_are_those_of_the_class_means_and_the_shared_covariance() -> None:
    """With 20,000 images the covariance is shrunk by less than a thousandth."""
    outputs, classes, covariance = draw(20_000)
    found = fit_gaussians(outputs, classes + 7)
    inverse = np.linalg.inv(covariance)
    means = [outputs[classes == c].mean(axis=0, dtype=np.float64) for c in range(3)]
    expected = [
        -min((one - mean) @ inverse @ (one - mean) for mean in means) for one in outputs[:50]
    ]
    # The covariance of 20,000 draws is known to about a percent
    np.testing.assert_allclose(found.scores(outputs[:50]), expected, rtol=0.05)


def test_fewer_images_than_outputs_have_finite_distances_and_larger_ones_elsewhere() -> None:
    outputs, classes, _ = draw(30, n_outputs=64)
    found = fit_gaussians(outputs, classes)
    elsewhere = found.scores(100 * np.random.default_rng(4).normal(0, 1, (50, 64)))
    assert np.isfinite(found.whitening).all()
    assert elsewhere.max() < found.scores(outputs).min()


def test_an_image_without_finite_outputs_has_no_part_in_them() -> None:
    outputs, classes, _ = draw(100)
    bad = np.concatenate([np.full((20, 4), np.nan, np.float32), outputs])
    found = fit_gaussians(bad, np.concatenate([np.zeros(20, int), classes]))
    expected = fit_gaussians(outputs, classes)
    np.testing.assert_array_equal(found.whitening, expected.whitening)
    np.testing.assert_array_equal(found.means, expected.means)


@pytest.mark.parametrize(
    ("outputs", "predicted"),
    [(np.ones((3, 4)), [0] * 3), (np.full((3, 4), np.nan), [0] * 3), (np.eye(3), [0, 1, 2])],
)
def test_outputs_that_do_not_differ_within_a_class_are_refused(
    outputs: np.ndarray, predicted: list[int]
) -> None:
    with pytest.raises(DataError, match="there is only one image of each predicted class, or no"):
        fit_gaussians(outputs.astype(np.float32), np.array(predicted))


def test_the_other_half_keeps_the_share_of_further_images_as_the_same_half_does_not() -> None:
    """80 images of 24 outputs: their own Gaussians fit them far better than further ones."""
    own, held_out = [], []
    rng = np.random.default_rng(5)
    for _ in range(80):
        outputs = rng.normal(0, 1, (660, 24)).astype(np.float32)
        known, others, further = outputs[:80], outputs[80:160], outputs[160:]
        gaussians = fit_gaussians(known, np.arange(80) % 3)
        for kept, one in zip((own, held_out), (known, others), strict=True):
            limits = fit_limit(gaussians.scores(one), 95.0)
            kept.append((gaussians.scores(further) >= limits.limit).mean())
    assert np.mean(own) < 0.93
    # 1 - 4 / 81 is 95.06 %; 80 draws of 80 images are exact to 0.3 points
    assert 0.94 < np.mean(held_out) < 0.96
