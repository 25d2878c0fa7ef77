"""Transductive labels: soft labels of a whole pool of images, found from all of them together.

Paper: Zanella et al., Boosting Vision-Language Models with Transduction (TransCLIP), NeurIPS 2024,
arXiv:2406.01837. Written from the paper's equations. For N unlabeled images with features f_i
[D], a model's class probabilities p_i [C], and S labeled images with one-hot z_s, it maximizes

    m (sum_i z_i . log g_i  +  gamma (N / S) sum_s z_s . log g_s)    the Gaussian mixture
    + sum_ij w_ij z_i . z_j                                          near images agree
    - sum_i (z_i . log z_i - lambda z_i . log p_i)                   the model's answers

over the assignments z_i [C] (at least 0, sum 1), the class means mu_k [D] and one diagonal
covariance sigma [D]. Here g_ik = N(f_i; mu_k, diag(sigma)), and w_ij = max(0, f_i . f_j) where j is
among the nearest neighbors of i, else 0; i and j run over all images, labeled ones included.

Each update is the exact maximum over what it updates, so none lowers the objective:

* z_i = softmax(m log g_i + sum_j (w_ij + w_ji) z_j + lambda log p_i), of images that are not
  neighbors of each other at once (Luby, SIAM J. Comput. 1986, independent sets);
* mu_k and sigma: mean and variance weighted by z, and by gamma N / S of labeled images.

z starts as p, each mean as that of the images with the highest p_ik of its class, sigma as 1 / D.

Differs from the paper: the weight m is ours. The paper divides the first sum by N, yet not in its
update of z, which is the one above with m = 1. Images are updated in groups, since an update of
neighbors at once may lower the objective: the affinities of nearest neighbors are not positive
semi-definite. A class that no image is predicted as starts from its most probable images too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdedge.errors import DivergedError, ShapeError

N_ROUNDS = 10
"""Rounds of updates of z, mu and sigma: arXiv:2406.01837."""

N_SWEEPS = 3
"""Updates of each z_i in a round: our choice."""

N_FIRST = 8
"""Images that a class mean starts from: those with its highest p_ik (arXiv:2406.01837)."""

_BLOCK = 2048  # images a side: a block of similarities stays in the cache of a core
_SMALLEST_VARIANCE = 1e-3  # of 1 / D, the variance of unit-length features: images may be equal


@dataclass(frozen=True)
class Objective:
    """The factors of the objective's terms.

    Attributes:
        n_neighbors: nearest neighbors of an image; 0 leaves the second term out.
        prior_weight: lambda.
        mixture_weight: m.
        labeled_weight: gamma.
    """

    n_neighbors: int = 3
    prior_weight: float = 1.0
    mixture_weight: float = 1.0
    labeled_weight: float = 1.0


@dataclass(frozen=True)
class Neighbors:
    """Each image's nearest neighbors by cosine, without itself.

    Attributes:
        indices: [N, k] int64; k is N - 1 where there are fewer images.
        affinities: [N, k], w_ij.
    """

    indices: Tensor
    affinities: Tensor


@dataclass(frozen=True)
class Mixture:
    """The Gaussian mixture: mu [C, D] and sigma [D], the diagonal of the covariance."""

    mu: Tensor
    sigma: Tensor

    def log_density(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, C], log g_ik."""
        precision = 1 / self.sigma
        distances = (
            (features.square() @ precision)[:, None]
            - 2 * features @ (self.mu * precision).T
            + self.mu.square() @ precision
        )
        return -0.5 * (distances + (2 * math.pi * self.sigma).log().sum())


@dataclass(frozen=True)
class Pool:
    """What labels are found from: N unlabeled images, then S labeled ones.

    Attributes:
        features: [N + S, D], unit length.
        log_prior: [N, C], log p_i of the unlabeled images.
        labels: [S] int64, classes of the labeled images.
    """

    features: Tensor
    log_prior: Tensor
    labels: Tensor

    @property
    def n_unlabeled(self) -> int:
        """N."""
        return len(self.log_prior)

    def weights(self, labeled_weight: float) -> Tensor:
        """[N + S]: 1, then gamma N / S."""
        n_labeled = len(self.labels)
        one = self.features.new_ones(self.n_unlabeled)
        labeled = labeled_weight * self.n_unlabeled / max(1, n_labeled)
        return torch.cat([one, self.features.new_full((n_labeled,), labeled)])

    def first_assignments(self) -> Tensor:
        """[N + S, C]: p_i, and one-hot rows of the labeled images."""
        n_classes = self.log_prior.shape[1]
        return torch.cat(
            [self.log_prior.exp(), F.one_hot(self.labels, n_classes).to(self.log_prior.dtype)]
        )


@dataclass(frozen=True)
class Found:
    """The labels, and the mixture that goes with them.

    Attributes:
        z: [N, C], of the unlabeled images.
        mixture: mu and sigma.
    """

    z: Tensor
    mixture: Mixture


def transductive_labels(pool: Pool, objective: Objective) -> Found:
    """Finds the labels of a pool.

    Computed in the features' dtype and on their device. The result depends on nothing else, and
    not on the order in which images are looked at.

    Raises:
        ShapeError: rows do not belong together.
        DivergedError: a feature or a probability is not finite.
    """
    _check(pool)
    search = Search(pool, objective)
    search.start()
    for _ in range(N_ROUNDS):
        search.update_assignments(N_SWEEPS)
        search.update_mixture()
    return Found(search.z[: pool.n_unlabeled], search.mixture)


def _check(pool: Pool) -> None:
    n_rows = pool.n_unlabeled + len(pool.labels)
    if len(pool.features) != n_rows:
        raise ShapeError(f"{len(pool.features)} rows of features for {n_rows} images.")
    for name, values in (("features", pool.features), ("probabilities", pool.log_prior)):
        odd = (~values.isfinite().all(dim=1)).nonzero()
        if len(odd):
            raise DivergedError(
                f"The {name} of {len(odd)} of {len(values)} images are not finite, first of"
                f" image {int(odd[0])}.\n"
                "  Train the model that gives them again, with a lower optim.lr."
            )


class Search:
    """The state of the search, and its updates.

    Attributes:
        z: [N + S, C].
        mixture: mu and sigma.
    """

    def __init__(self, pool: Pool, objective: Objective) -> None:
        self._pool = pool
        self._prior = objective.prior_weight * pool.log_prior
        self._mixture_weight = objective.mixture_weight
        self._weights = pool.weights(objective.labeled_weight)
        self._squares = _weighted_squares(pool.features, self._weights)
        self._graph = _Graph(
            nearest_neighbors(pool.features, objective.n_neighbors), pool.n_unlabeled
        )
        self.z = pool.first_assignments()
        self.mixture = Mixture(pool.features[:0], pool.features[0])

    def start(self) -> None:
        """First means: of the images with a class's highest p_ik; sigma is 1 / D."""
        features, dim = self._pool.features, self._pool.features.shape[1]
        first = self.z.topk(min(N_FIRST, len(self.z)), dim=0).indices  # [8, C]
        mu = torch.stack([features[rows].mean(dim=0) for rows in first.T])
        self.mixture = Mixture(mu, features.new_full((dim,), 1 / dim))

    def update_assignments(self, n_sweeps: int = 1) -> None:
        """Updates every z_i so many times, given mu and sigma."""
        n = self._pool.n_unlabeled
        densities = self.mixture.log_density(self._pool.features[:n])
        fixed = self._mixture_weight * densities + self._prior
        for _ in range(n_sweeps):
            for rows in self._graph.groups:
                self.z[rows] = (fixed[rows] + self._graph.pull(self.z, rows)).softmax(dim=1)

    def update_mixture(self) -> None:
        """Updates mu and sigma, given z; the mean of a class without any image stays."""
        features, weights = self._pool.features, self._weights
        shares = self.z * weights[:, None]
        n_images = shares.sum(dim=0)[:, None]  # [C, 1]
        has_any = n_images > torch.finfo(features.dtype).tiny
        means = shares.T @ features / n_images.clamp_min(torch.finfo(features.dtype).tiny)
        mu = torch.where(has_any, means, self.mixture.mu)
        variance = self._squares - (n_images.double() * mu.double().square() * has_any).sum(dim=0)
        sigma = (variance / weights.double().sum()).to(features.dtype)
        self.mixture = Mixture(mu, sigma.clamp_min(_SMALLEST_VARIANCE / features.shape[1]))


def _weighted_squares(features: Tensor, weights: Tensor) -> Tensor:
    """[D], sums over images, in float64: a variance is a small difference of large sums."""
    found = [
        weights[start : start + _BLOCK].double()
        @ features[start : start + _BLOCK].double().square()
        for start in range(0, len(features), _BLOCK)
    ]
    return torch.stack(found).sum(dim=0)


class _Graph:
    """The affinities of both directions, and groups of images that are no neighbors."""

    def __init__(self, neighbors: Neighbors, n_unlabeled: int) -> None:
        n_images, k = neighbors.indices.shape
        here = torch.arange(n_images, device=neighbors.indices.device).repeat_interleave(k)
        there, affinities = neighbors.indices.flatten(), neighbors.affinities.flatten()
        rows, columns = torch.cat([here, there]), torch.cat([there, here])
        order = rows.argsort(stable=True)
        self._columns = columns[order]
        self._affinities = torch.cat([affinities, affinities])[order]
        self._counts = rows.bincount(minlength=n_images)
        self._starts = self._counts.cumsum(0) - self._counts
        self.groups = _independent_groups(rows[order], self._columns, n_images, n_unlabeled)

    def pull(self, z: Tensor, rows: Tensor) -> Tensor:
        """[len(rows), C]: sum_j (w_ij + w_ji) z_j."""
        counts = self._counts[rows]
        offsets = counts.cumsum(0) - counts
        edges = (self._starts[rows] - offsets).repeat_interleave(counts)
        edges += torch.arange(len(edges), device=edges.device)
        return F.embedding_bag(
            self._columns[edges],
            z,
            offsets,
            mode="sum",
            per_sample_weights=self._affinities[edges],
        )


def _independent_groups(
    rows: Tensor, columns: Tensor, n_images: int, n_unlabeled: int
) -> Sequence[Tensor]:
    """Groups of unlabeled images without an edge inside of a group; each image is in one.

    Images have random ranks; a group takes those that outrank all their neighbors that are left.
    Updating group after group is therefore the same as image after image, the highest rank first.
    """
    ranks = torch.randperm(n_images, generator=torch.Generator().manual_seed(0)).to(rows.device)
    is_left = torch.arange(n_images, device=rows.device) < n_unlabeled
    groups = []
    while bool(is_left.any()):
        rivals = torch.where(is_left[columns], ranks[columns], -1)
        highest = torch.full_like(ranks, -1).scatter_reduce(0, rows, rivals, "amax")
        is_chosen = is_left & (ranks > highest)
        groups.append(is_chosen.nonzero().squeeze(1))
        is_left &= ~is_chosen
    return groups


def nearest_neighbors(features: Tensor, n_neighbors: int, *, block: int = _BLOCK) -> Neighbors:
    """Finds each image's nearest neighbors exactly, in blocks; no N x N matrix is kept.

    Args:
        features: [N, D], unit length.
        n_neighbors: k; N - 1 where there are fewer images.
        block: images a side of a block of similarities.
    """
    n_images = len(features)
    k = max(0, min(n_neighbors, n_images - 1))
    best = features.new_full((n_images, k), -math.inf)
    indices = torch.zeros((n_images, k), dtype=torch.int64, device=features.device)
    for start in range(0, n_images if k else 0, block):
        rows = features[start : start + block]
        for other in range(start, n_images, block):
            similarities = rows @ features[other : other + block].T
            if other == start:
                similarities.fill_diagonal_(-math.inf)
            else:  # each pair of blocks is multiplied once
                _keep_best(best[other:], indices[other:], similarities.T, start)
            _keep_best(best[start:], indices[start:], similarities, other)
    return Neighbors(indices, best.clamp_min(0))


def _keep_best(best: Tensor, indices: Tensor, similarities: Tensor, first: int) -> None:
    """Puts a block's similarities into the best ones so far of its rows.

    Args:
        best: [at least R, k], sorted; changed in place.
        indices: [at least R, k]; changed in place.
        similarities: [R, M], to the images `first` and those behind it.
        first: the first column's image.
    """
    n_rows, n_columns = similarities.shape
    k = best.shape[1]
    rows = (similarities.amax(dim=1) > best[:n_rows, -1]).nonzero().squeeze(1)
    found = similarities[rows].topk(min(k, n_columns), dim=1)
    values = torch.cat([best[rows], found.values], dim=1)
    images = torch.cat([indices[rows], found.indices + first], dim=1)
    kept = values.topk(k, dim=1)
    best[rows], indices[rows] = kept.values, images.gather(1, kept.indices)
