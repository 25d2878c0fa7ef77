"""Transductive labels against a slow, literal version of the objective and its updates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from kdedge.data.transductive import (
    N_FIRST,
    N_ROUNDS,
    N_SWEEPS,
    Objective,
    Pool,
    Search,
    nearest_neighbors,
    transductive_labels,
)
from kdedge.errors import DivergedError, ShapeError

OBJECTIVES = {
    "published": Objective(),
    "labels": Objective(prior_weight=0.5, labeled_weight=0.3),
    "weights": Objective(n_neighbors=5, prior_weight=2.0, mixture_weight=0.05),
    "no neighbors": Objective(n_neighbors=0),
}


def drawn(
    n_images: int = 23, n_labeled: int = 5, n_classes: int = 4, dim: int = 6, seed: int = 0
) -> Pool:
    """Images around class centers, in float64, with a model that knows little."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    n_all = n_images + n_labeled
    labels = torch.randint(0, n_classes, (n_all,), generator=rng)
    features = F.normalize(normal(n_classes, dim)[labels] + 0.6 * normal(n_all, dim), dim=1)
    logits = 1.5 * F.one_hot(labels[:n_images], n_classes) + normal(n_images, n_classes)
    return Pool(features, logits.log_softmax(dim=1), labels[n_images:])


# The literal version: plain loops over images, classes and dimensions


def affinities(pool: Pool, k: int) -> np.ndarray:
    """[N + S, N + S], w_ij, by sorting all similarities."""
    f = pool.features.numpy()
    w = np.zeros((len(f), len(f)))
    for i in range(len(f)):
        others = sorted((j for j in range(len(f)) if j != i), key=lambda j: -float(f[i] @ f[j]))
        for j in others[:k]:
            w[i, j] = max(0.0, float(f[i] @ f[j]))
    return w


def log_g(f: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """[C], logarithms of the normal density of one image under each class."""
    return np.array(
        [
            sum(
                -0.5 * math.log(2 * math.pi * sigma[d]) - (f[d] - m[d]) ** 2 / (2 * sigma[d])
                for d in range(len(f))
            )
            for m in mu
        ]
    )


def value(pool: Pool, o: Objective, z: np.ndarray, mu: np.ndarray, sigma: np.ndarray) -> float:
    """The objective, term by term as the module's docstring has it."""
    f, log_p = pool.features.numpy(), pool.log_prior.numpy()
    n, n_labeled = len(log_p), len(pool.labels)
    total = sum(o.mixture_weight * float(z[i] @ log_g(f[i], mu, sigma)) for i in range(n))
    for s in range(n, n + n_labeled):
        weight = o.mixture_weight * o.labeled_weight * n / n_labeled
        total += weight * float(z[s] @ log_g(f[s], mu, sigma))
    w = affinities(pool, o.n_neighbors)
    for i in range(n + n_labeled):
        for j in range(n + n_labeled):
            total += w[i, j] * float(z[i] @ z[j])
    for i in range(n):
        entropy = sum(x * math.log(x) for x in z[i] if x > 0)
        total -= entropy - o.prior_weight * float(z[i] @ log_p[i])
    return total


def literal(pool: Pool, o: Objective) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, mu and sigma after all rounds; images are updated one by one, the highest rank first."""
    f, log_p = pool.features.numpy(), pool.log_prior.numpy()
    (n, n_classes), n_labeled, dim = log_p.shape, len(pool.labels), f.shape[1]
    one_hot = np.eye(n_classes)[pool.labels.numpy()].reshape(n_labeled, n_classes)
    z = np.concatenate([np.exp(log_p), one_hot])
    w = affinities(pool, o.n_neighbors)
    ranks = torch.randperm(n + n_labeled, generator=torch.Generator().manual_seed(0)).tolist()
    order = sorted(range(n), key=lambda i: -ranks[i])
    weights = [1.0] * n + [o.labeled_weight * n / max(1, n_labeled)] * n_labeled
    first = [sorted(range(len(z)), key=lambda i: -z[i, c])[:N_FIRST] for c in range(n_classes)]
    mu, sigma = np.array([f[rows].mean(axis=0) for rows in first]), np.full(dim, 1 / dim)
    for _ in range(N_ROUNDS):
        for _ in range(N_SWEEPS):
            for i in order:
                scores = o.mixture_weight * log_g(f[i], mu, sigma) + o.prior_weight * log_p[i]
                for j in range(n + n_labeled):
                    scores = scores + (w[i, j] + w[j, i]) * z[j]
                z[i] = np.exp(scores - scores.max())
                z[i] /= z[i].sum()
        for c in range(n_classes):
            shares = [weights[i] * z[i, c] for i in range(len(z))]
            mu[c] = sum(share * x for share, x in zip(shares, f, strict=True)) / sum(shares)
        spread = np.zeros(dim)
        for i in range(len(z)):
            for c in range(n_classes):
                spread += weights[i] * z[i, c] * (f[i] - mu[c]) ** 2
        sigma = np.maximum(spread / sum(weights), 1e-3 / dim)
    return z[:n], mu, sigma


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("n_labeled", [0, 5])
def test_labels_means_and_variances_are_those_of_plain_loops(name: str, n_labeled: int) -> None:
    pool = drawn(n_labeled=n_labeled)
    found = transductive_labels(pool, OBJECTIVES[name])
    z, mu, sigma = literal(pool, OBJECTIVES[name])
    np.testing.assert_allclose(found.z.numpy(), z, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mixture.mu.numpy(), mu, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mixture.sigma.numpy(), sigma, rtol=1e-6)


@settings(max_examples=25)
@given(st.sampled_from(sorted(OBJECTIVES)), st.integers(0, 4), st.integers(0, 1000))
def test_no_update_lowers_the_objective(name: str, n_labeled: int, seed: int) -> None:
    pool, objective = drawn(n_labeled=n_labeled, seed=seed), OBJECTIVES[name]
    search = Search(pool, objective)
    search.start()

    def now() -> float:
        parts = search.z, search.mixture.mu, search.mixture.sigma
        return value(pool, objective, *(part.numpy() for part in parts))

    before = first = now()
    for step in range(8):
        search.update_mixture() if step % 2 else search.update_assignments()
        after = now()
        assert after >= before - 1e-9 * abs(before), (step, before, after)
        before = after
    assert before > first


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(0, 6), st.integers(1, 9), st.integers(0, 1000))
def test_neighbors_in_blocks_are_those_of_all_similarities(
    n_images: int, k: int, block: int, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(n_images, 8, generator=rng, dtype=torch.float64), dim=1)
    found = nearest_neighbors(features, k, block=block)
    similar = features @ features.T
    similar.fill_diagonal_(-math.inf)
    expected = similar.topk(min(k, n_images - 1), dim=1)
    assert found.indices.tolist() == expected.indices.tolist()
    torch.testing.assert_close(found.affinities, expected.values.clamp_min(0))


def test_labels_follow_their_classes_when_these_change_places() -> None:
    pool, order = drawn(), torch.tensor([2, 0, 3, 1])
    place = order.argsort()
    moved = Pool(pool.features, pool.log_prior[:, order], place[pool.labels])
    z = transductive_labels(pool, Objective()).z
    torch.testing.assert_close(transductive_labels(moved, Objective()).z, z[:, order])


def test_float32_labels_are_those_of_float64_to_rounding() -> None:
    pool = drawn(n_images=200, dim=32)
    single = Pool(pool.features.float(), pool.log_prior.float(), pool.labels)
    z = transductive_labels(pool, Objective()).z
    # Rounding grows over 50 updates of neighbors
    torch.testing.assert_close(
        transductive_labels(single, Objective()).z.double(), z, rtol=0, atol=1e-3
    )


def test_labels_of_separate_groups_are_found_where_the_model_is_often_wrong() -> None:
    rng = torch.Generator().manual_seed(3)
    truth = torch.arange(4).repeat_interleave(60)
    centers = F.normalize(torch.randn(4, 16, generator=rng), dim=1)
    features = F.normalize(centers[truth] + 0.05 * torch.randn(240, 16, generator=rng), dim=1)
    logits = F.one_hot(truth, 4) + 1.2 * torch.randn(240, 4, generator=rng)
    pool = Pool(features, logits.log_softmax(dim=1), torch.empty(0, dtype=torch.int64))
    assert (logits.argmax(dim=1) == truth).float().mean() < 0.7
    assert (transductive_labels(pool, Objective()).z.argmax(dim=1) == truth).all()


# Odd pools


def without_labels(features: Tensor, log_prior: Tensor) -> Pool:
    return Pool(features, log_prior, torch.empty(0, dtype=torch.int64))


def is_valid(z: Tensor) -> bool:
    return bool(z.isfinite().all()) and torch.allclose(z.sum(dim=1), torch.ones(len(z)).to(z))


@pytest.mark.parametrize("n_images", [1, 2, 3])
def test_a_pool_of_fewer_images_than_neighbors_has_labels(n_images: int) -> None:
    pool = drawn(n_images=n_images, n_labeled=0)
    found = transductive_labels(pool, Objective(n_neighbors=3))
    assert found.z.shape == (n_images, 4)
    assert is_valid(found.z)


def test_with_one_class_every_image_is_of_it() -> None:
    found = transductive_labels(drawn(n_classes=1), Objective())
    assert found.z.tolist() == [[1.0]] * 23


def test_equal_images_have_equal_labels_and_a_variance_above_zero() -> None:
    features = F.normalize(torch.ones(30, 6), dim=1)
    log_prior = torch.tensor([0.5, 0.3, 0.2]).log().repeat(30, 1)
    found = transductive_labels(without_labels(features, log_prior), Objective())
    assert is_valid(found.z)
    assert float(found.mixture.sigma.min()) > 0
    assert set(found.z.argmax(dim=1).tolist()) == {0}


def test_a_class_that_no_image_is_of_keeps_its_mean_and_takes_none() -> None:
    pool = drawn(n_labeled=0)
    log_prior = pool.log_prior.clone()
    log_prior[:, 2] = -1e4
    found = transductive_labels(
        without_labels(pool.features, log_prior.log_softmax(dim=1)), Objective()
    )
    assert is_valid(found.z)
    assert float(found.z[:, 2].max()) == 0
    assert bool(found.mixture.mu.isfinite().all())


@pytest.mark.parametrize("part", ["features", "log_prior"])
def test_a_value_that_is_not_finite_is_named(part: str) -> None:
    pool: Any = drawn()
    getattr(pool, part)[4, 1] = math.nan
    with pytest.raises(DivergedError, match=r"1 of .* images are not finite, first of image 4"):
        transductive_labels(pool, Objective())


def test_rows_that_do_not_belong_together_are_refused() -> None:
    pool = drawn()
    with pytest.raises(ShapeError, match="27 rows of features for 28 images"):
        transductive_labels(Pool(pool.features[1:], pool.log_prior, pool.labels), Objective())
