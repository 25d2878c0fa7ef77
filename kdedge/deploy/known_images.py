"""Known images, the Gaussians of a model's outputs for them, and each file's "none of these" limit.

Gaussians are fitted to one half of the images, and the limit to the other half: an image that was
used in the fit is too close to its Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdedge.artifacts.parity import predict_pixels
from kdedge.config.fields import percent_value
from kdedge.data.images import Images
from kdedge.deploy.pixels import PixelArray, draw_contents, read_different_pixels, read_images
from kdedge.errors import DataError, RecipeError
from kdedge.files import write_atomic
from kdedge.runs.model import RunModel
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.backend import Backend, TakesImages
from kdedge.runtime.none_of_these import (
    GAUSSIANS_FILE,
    N_PERCENTILES,
    NONE,
    Gaussians,
    NoneBelow,
    NoneOfThese,
    read_gaussians,
)
from kdedge.runtime.open_classes import class_logits, graph_of

# With this number, the share of known images below the limit is exact to 0.34 points (one
# standard deviation, at 5 %)
MAX_IMAGES = 8000

_FOR_GAUSSIANS = slice(0, None, 2)
_FOR_LIMIT = slice(1, None, 2)


@dataclass(frozen=True)
class KnownImages:
    """Images like those that the model will classify.

    Attributes:
        chosen: the images.
        pixels: [N, S, S, 3], uint8, after resize and crop.
        share_percent: wanted share of known images that get a class.
        what: description of the images, for the record.
    """

    chosen: Images
    pixels: PixelArray
    share_percent: float
    what: str

    @property
    def digests(self) -> frozenset[str]:
        """SHA-256 of the images."""
        return frozenset(self.chosen.digests[index] for index in self.chosen.indices)

    @property
    def about(self) -> NoneOfThese:
        """The record of an artifact whose files have limits."""
        n_images = len(self.chosen.indices)
        return NoneOfThese("mahalanobis", GAUSSIANS_FILE, self.share_percent, self.what, n_images)

    def limit_of(self, artifact: Artifact, file: ModelFile, backend: Backend) -> NoneBelow | None:
        """Fits the limit of a loaded file of the artifact; see `fit_limit`.

        The Gaussians are fitted to the float32 ONNX file, the first one, and stored beside it.

        Raises:
            DataError: no output is finite.
            ResourceError: the file of the Gaussians cannot be written.
        """
        outputs, predicted = self._outputs(artifact, backend)
        if (file.target, file.precision) == ("onnx", "fp32"):
            fitted = fit_gaussians(outputs[_FOR_GAUSSIANS], predicted[_FOR_GAUSSIANS])
            write_atomic(artifact.path / GAUSSIANS_FILE, fitted.to_bytes())
        gaussians = read_gaussians(artifact.path / GAUSSIANS_FILE)
        held_out = outputs[_FOR_LIMIT]
        finite = held_out[np.isfinite(held_out).all(axis=1)]
        return fit_limit(gaussians.scores(finite), self.share_percent)

    def _outputs(
        self, artifact: Artifact, backend: Backend
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Returns the graph outputs of a loaded file, [N, C] or [N, D], and its classes, [N]."""
        graph, matrix = graph_of(backend)
        if isinstance(backend, TakesImages):
            images = read_images(self.chosen.source, self.chosen.indices)
            outputs = np.concatenate([graph.run_image(image) for image in images])
        else:
            outputs = predict_pixels(graph, self.pixels, artifact)
        logits = outputs if matrix is None else class_logits(outputs, matrix)
        return outputs, logits.argmax(axis=1)


def fit_gaussians(
    outputs: npt.NDArray[np.float32], predicted: npt.NDArray[np.integer[Any]]
) -> Gaussians:
    """Fits a Gaussian to the outputs of each predicted class, with one covariance for all.

    The covariance is shrunk towards its mean variance, the more the fewer images there are (Ledoit
    and Wolf 2004, doi:10.1016/S0047-259X(03)00096-4), so that fewer images than outputs are enough.

    Args:
        outputs: [N, O]; images whose outputs are not finite are left out.
        predicted: [N], the predicted class of each image.

    Raises:
        DataError: all outputs of each predicted class are equal, or none is finite.
    """
    is_finite = np.isfinite(outputs).all(axis=1)
    values = outputs[is_finite].astype(np.float64)
    predicted = predicted[is_finite]
    classes, positions = np.unique(predicted, return_inverse=True)
    means = np.stack([values[positions == c].mean(axis=0) for c in range(len(classes))] or [[]])
    centered = values - means[positions] if len(values) else values
    n_images, n_outputs = centered.shape
    covariance = centered.T @ centered / max(1, n_images)
    variance = np.trace(covariance) / n_outputs
    if not variance > 0:
        raise DataError(
            '"None of these": known images of one predicted class do not differ in their outputs,'
            " there is only one image of each predicted class, or no output is finite.\n"
            "  Check data.unlabeled: it needs real images of the deployment, several of each class."
        )
    distance = (covariance**2).sum() - n_outputs * variance**2  # squared distance to the target
    noise = ((centered**2).sum(axis=1) ** 2).sum() / n_images - (covariance**2).sum()
    weight = 1.0 if distance <= 0 else min(1.0, max(0.0, noise / n_images / distance))
    shrunk = (1 - weight) * covariance + weight * variance * np.eye(n_outputs)
    variances, directions = np.linalg.eigh(shrunk)
    is_used = variances > variances.max() * n_outputs * np.finfo(np.float32).eps
    whitening = (directions[:, is_used] / np.sqrt(variances[is_used])).T
    return Gaussians(whitening, means @ whitening.T)


def fit_limit(scores: npt.NDArray[np.float64], share_percent: float) -> NoneBelow | None:
    """Finds the score that a share of known images reaches.

    The limit is the k-th lowest score of N known images, with `k = floor((1 - share) (N + 1))`. A
    new known image is below it with a probability of at most `k / (N + 1)` (conformal prediction,
    Vovk et al. 2005; arXiv:2107.07511, section 1.1).

    Args:
        scores: [N], finite, of a file on known images that no Gaussian was fitted to.
        share_percent: wanted share of known images that are not below the limit.

    Returns:
        The limit; None if there are too few images.
    """
    scores = np.sort(scores)
    position = math.floor((1 - share_percent / 100) * (len(scores) + 1) + 1e-9)
    if position < 1:
        return None
    percentiles = np.quantile(scores, np.linspace(0, 1, N_PERCENTILES))
    percentiles = np.maximum.accumulate(percentiles)  # rounding may swap equal values
    return NoneBelow(float(scores[position - 1]), tuple(map(float, percentiles)))


def min_known_images(share_percent: float) -> int:
    """The smallest number of known images that a limit can be fitted to: 19 for 95 %.

    Args:
        share_percent: wanted share of known images that are not below the limit.
    """
    return math.ceil(1 / (1 - share_percent / 100) - 1 - 1e-9)


def choose_known_images(
    trained: RunModel, pool: Images | None, share: str | None, *, exclude_digests: Collection[str]
) -> KnownImages | None:
    """Draws known images: at most half of the unlabeled images.

    Args:
        trained: the model and its recipe; the recipe's seed is used.
        pool: the recipe's unlabeled images; None if it has none.
        share: the recipe's `export.none_of_these`.
        exclude_digests: SHA-256 of images that files are compared on.

    Returns:
        The images, without duplicates; None if `share` is None.

    Raises:
        RecipeError: a class has the name that is predicted for images of no class.
        DataError: there are too few images, or all look the same.
    """
    if share is None:
        return None
    if NONE in trained.class_names:
        raise RecipeError(
            f'The class list has "{NONE}", which is the prediction for images of none of the'
            " classes.\n  Give the class another name, or leave export.none_of_these out."
        )
    share_percent = percent_value(share)
    needed = 2 * min_known_images(share_percent)
    allowed = {}
    if pool is not None:
        allowed = {i: d for i in pool.indices if (d := pool.digests[i]) not in exclude_digests}
    drawn = draw_contents(allowed, trained.recipe.seed)
    chosen = drawn[: min(MAX_IMAGES, max(needed, len(drawn) // 2))]
    if pool is None or len(chosen) < needed:
        raise DataError(
            f'"None of these" for {share_percent:g} % needs {needed} or more unlabeled images, but'
            f" {len(chosen)} are left besides those that files are compared on.\n"
            "  Add images to data.unlabeled, or leave export.none_of_these out."
        )
    pixels = read_different_pixels(pool.source, chosen, trained.preprocess, use='"None of these"')
    what = f"{len(chosen)} of {len(pool.indices)} images of data.unlabeled"
    return KnownImages(pool.only(chosen), pixels, share_percent, what)
