"""Fits the limits of "none of these" to known images, for each file of an artifact."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdedge.config.fields import percent_value
from kdedge.deploy.parity import predict_images, predict_pixels
from kdedge.deploy.pixels import PixelArray, read_images, read_pixels
from kdedge.errors import DataError, RecipeError
from kdedge.runs.model import RunModel
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.backend import Backend, TakesImages
from kdedge.runtime.none_of_these import (
    N_PERCENTILES,
    NONE,
    NoneBelow,
    NoneOfThese,
    scores_of,
)
from kdedge.setup.images import Images

log = logging.getLogger(__name__)

MOST_IMAGES = 1000
"""The share of known images below a limit that 1,000 images give is exact to 0.7 points (one
standard deviation, at 5 %)."""


@dataclass(frozen=True)
class KnownImages:
    """Images like those that the model is made for.

    Attributes:
        chosen: the images.
        pixels: [N, S, S, 3], uint8, after resize and crop.
        share_percent: wanted share of such images that keep their class.
        what: describes the images.
    """

    chosen: Images
    pixels: PixelArray
    share_percent: float
    what: str

    @property
    def digests(self) -> frozenset[str]:
        """SHA-256 of the images."""
        return frozenset(self.chosen.digests[index] for index in self.chosen.indices)

    def record(self) -> NoneOfThese:
        """What the artifact has of it."""
        return NoneOfThese("max logit", self.share_percent, self.what, len(self.pixels))

    def limits(self, artifact: Artifact, backend: Backend, what: str = "") -> NoneBelow | None:
        """The limits of one of the artifact's files, which is loaded; see `fit_limits`."""
        if isinstance(backend, TakesImages):
            images = read_images(self.chosen.source, self.chosen.indices)
            logits = predict_images(backend, images, artifact)
        else:
            logits = predict_pixels(backend, self.pixels, artifact, what=what)
        return fit_limits(logits, self.share_percent)


def fit_limits(logits: npt.NDArray[np.float32], share_percent: float) -> NoneBelow | None:
    """The score that a share of known images reaches.

    Of N known images, the limit is the score of the k-th lowest, `k = floor((1 - share) (N + 1))`:
    a further known image is below it with a probability of at most `k / (N + 1)` (conformal
    prediction, Vovk et al. 2005; arXiv:2107.07511, section 1.1).

    Args:
        logits: [N, C], of a file on known images. Images whose logits are not finite are left out,
            as they get no answer at all.
        share_percent: wanted share of known images that are not below the limit.

    Returns:
        The limit; None if there are too few images for one.
    """
    scores = np.sort(scores_of(logits[np.isfinite(logits).all(axis=1)]))
    position = math.floor((1 - share_percent / 100) * (len(scores) + 1) + 1e-9)
    if position < 1:
        return None
    percentiles = np.quantile(scores, np.linspace(0, 1, N_PERCENTILES))
    percentiles = np.maximum.accumulate(percentiles)  # rounding may turn equal ones around
    return NoneBelow(float(scores[position - 1]), tuple(map(float, percentiles)))


def least_images(share_percent: float) -> int:
    """The fewest known images that a limit for this share can be fitted to: 19 for 95 %."""
    return math.ceil(1 / (1 - share_percent / 100) - 1 - 1e-9)


def choose_known_images(
    trained: RunModel, pool: Images | None, share: str | None, *, apart_from: Collection[str]
) -> KnownImages | None:
    """Draws known images from the unlabeled ones, each content once and at most half of them.

    Args:
        trained: the model and its recipe, whose seed draws.
        pool: the recipe's unlabeled images; None if it has none.
        share: the recipe's `export.none_of_these`.
        apart_from: SHA-256 of images that files are compared on.

    Returns:
        The images; None without a share.

    Raises:
        RecipeError: a class has the name of the answer for images that show none.
        DataError: there are too few images, or all look the same.
    """
    if share is None:
        return None
    if NONE in trained.class_names:
        raise RecipeError(
            f'The class list has "{NONE}", which is the answer for images that show none of the'
            " classes.\n  Give the class another name, or leave export.none_of_these out."
        )
    share_percent = percent_value(share)
    least = least_images(share_percent)
    drawn: dict[str, int] = {}
    indices = () if pool is None else sorted(pool.indices)
    rng = np.random.default_rng(trained.loaded.recipe.seed)
    for index in rng.permutation(indices).tolist():
        assert pool is not None  # as it has an image
        if pool.digests[index] not in apart_from:
            drawn.setdefault(pool.digests[index], index)
    few = list(drawn.values())[: min(MOST_IMAGES, max(least, len(drawn) // 2))]
    if pool is None or len(few) < least:
        raise DataError(
            f'"None of these" for {share_percent:g} % needs {least} or more unlabeled images, but'
            f" {len(few)} are left besides those that files are compared on.\n"
            "  Add images to data.unlabeled, or leave export.none_of_these out."
        )
    pixels = read_pixels(pool.source, few, trained.preprocess)
    if not (pixels != pixels[0]).any():
        raise DataError(
            f'"None of these": all {len(few)} unlabeled images have the same pixels, for example'
            f" {pool.source.items[few[0]].key}, so they show no limit.\n"
            "  Check data.unlabeled: it needs real images of the deployment."
        )
    what = f"{len(few)} of {len(pool.indices)} images of data.unlabeled"
    return KnownImages(pool.only(few), pixels, share_percent, what)
