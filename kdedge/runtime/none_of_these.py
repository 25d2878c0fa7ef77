"""How an artifact detects images that show none of its classes.

Known images are like the model's training images. The graph's outputs for them are modeled as
Gaussian around a mean for each class, with one covariance for all (Lee et al. 2018,
arXiv:1807.03888). The score of an image is minus its squared Mahalanobis distance to the nearest
mean, and an image whose score is below a limit shows none of the classes. Outputs are logits, or
features with open classes. Each file has its own limit, since INT8 shifts outputs.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from pydantic import AfterValidator, Field

from kdedge.records.record import PositiveCount, Record

# The prediction for an image that shows none of the classes; no class may have this name
NONE = "none"

GAUSSIANS_FILE = "none_of_these.safetensors"
N_PERCENTILES = 101


@dataclass(frozen=True, eq=False)
class Gaussians:
    """Gaussians over O outputs with a common covariance.

    Attributes:
        whitening: [R, O] float64; its product with the outputs has unit covariance.
        means: [K, R] float64, the whitened means.
    """

    whitening: npt.NDArray[np.float64]
    means: npt.NDArray[np.float64]

    def scores(self, outputs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Outputs [B, O] -> [B], minus the squared distance to the nearest mean."""
        whitened = outputs.astype(np.float64) @ self.whitening.T
        squares = (whitened**2).sum(axis=1)[:, None] + (self.means**2).sum(axis=1)
        values: npt.NDArray[np.float64] = (2 * whitened @ self.means.T - squares).max(axis=1)
        return values

    def to_bytes(self) -> bytes:
        """The content of the artifact's file."""
        tensors = {"whitening": self.whitening, "means": self.means}
        return safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in tensors.items()})


def read_gaussians(path: Path) -> Gaussians:
    """Reads an artifact's file, whose hash the caller has checked."""
    tensors = safetensors.numpy.load_file(path)
    return Gaussians(tensors["whitening"], tensors["means"])


def _check_percentiles(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != N_PERCENTILES or any(a > b for a, b in itertools.pairwise(values)):
        raise ValueError(f"{N_PERCENTILES} scores in ascending order")
    return values


class Similarity(NamedTuple):
    """How similar an image is to the known images.

    Attributes:
        is_none: whether it shows none of the classes.
        known_percent: share of the known images with a lower score.
    """

    is_none: bool
    known_percent: float


@dataclass(frozen=True)
class NoneBelow(Record):
    """The limit of one file.

    Attributes:
        limit: an image with a lower score shows none of the classes.
        percentiles: scores of the known images at 0, 1, ..., 100 percent.
    """

    limit: float
    percentiles: Annotated[tuple[float, ...], AfterValidator(_check_percentiles)]

    def similarities(self, scores: npt.NDArray[np.float64]) -> list[Similarity]:
        """What the scores [B] of images say."""
        percents = np.interp(scores, self.percentiles, np.arange(N_PERCENTILES))
        are_none = (scores < self.limit).tolist()
        return list(map(Similarity, are_none, percents.tolist()))


@dataclass(frozen=True)
class NoneOfThese(Record):
    """How an artifact detects images that show none of its classes.

    Attributes:
        score: the score of an image; see the module's docstring.
        file: name of the file with the Gaussians.
        share_percent: share of known images that should keep their class.
        images: description of the known images.
        n_images: number of known images.
    """

    score: Literal["mahalanobis"]
    file: str
    share_percent: Annotated[float, Field(ge=50, le=99.9)]
    images: str
    n_images: PositiveCount
