"""Known images, and the limits of "none of these" that are fitted to them for each file."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdedge.config.fields import percent_value
from kdedge.deploy.known_fit import (
    fit_gaussians,
    fit_held_out,
    fit_limits,
    held_out_scores,
    least_images,
)
from kdedge.deploy.pixels import PixelArray, read_images, read_pixels
from kdedge.errors import DataError, RecipeError
from kdedge.files import sha256_file, write_atomic
from kdedge.runs.model import RunModel
from kdedge.runs.temperature import labeled_apart
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.backend import Backend, TakesImages
from kdedge.runtime.batches import run_batches
from kdedge.runtime.none_of_these import FILE_NAME, NONE, Gaussians, NoneBelow, NoneOfThese
from kdedge.runtime.open_classes import class_logits, graph_of
from kdedge.setup.images import Images

MOST_IMAGES = 4000
"""The share of known images below a limit that so many give is exact to 0.34 points (one standard
deviation, at 5 %)."""

MOST_LABELED = 5000
"""Labeled images besides those, as many of each class."""

_BATCH = 32


@dataclass(frozen=True)
class KnownImages:
    """Images like those that the model is made for.

    Attributes:
        chosen: the images: unlabeled ones, and then labeled ones that are not among them.
        n_unlabeled: number of the first.
        labels: [N], the class of each image in the exported list; -1 where it is not known.
        pixels: [N, S, S, 3], uint8, after resize and crop.
        share_percent: wanted share of such images that keep their class.
        what: describes the unlabeled images.
        what_labeled: describes the labeled ones.
    """

    chosen: Images
    n_unlabeled: int
    labels: npt.NDArray[np.int64]
    pixels: PixelArray
    share_percent: float
    what: str
    what_labeled: str

    @property
    def digests(self) -> frozenset[str]:
        """SHA-256 of the images."""
        return frozenset(self.chosen.digests[index] for index in self.chosen.indices)

    def fit(self, artifact: Artifact, backend: Backend) -> tuple[Artifact, KnownLimits]:
        """Fits Gaussians to the float32 file's outputs, and writes them into the artifact's folder.

        Returns:
            The artifact that lists them, and what fits the limits of its files.

        Raises:
            DataError: no output is finite.
            ResourceError: the file cannot be written.
        """
        outputs, answers = self.outputs(artifact, backend)
        some = slice(self.n_unlabeled)
        gaussians = fit_gaussians(outputs[some], answers[some])
        held_out = fit_held_out(outputs[some], answers[some])
        is_right = np.logical_and(answers == self.labels, np.isfinite(outputs).all(axis=1))
        counts = np.bincount(answers[is_right], minlength=len(artifact.class_names))
        enough = np.flatnonzero(counts >= enough_labels(self.share_percent))
        fitted = KnownLimits(self, gaussians, held_out, tuple(enough.tolist()))
        path = artifact.path / FILE_NAME
        write_atomic(path, gaussians.to_bytes())
        none = NoneOfThese(
            *("mahalanobis", FILE_NAME, self.share_percent, self.what, self.n_unlabeled),
            labeled_images=self.what_labeled if len(enough) else None,
        )
        others = {**artifact.others, FILE_NAME: sha256_file(path)}
        return dataclasses.replace(artifact, none_of_these=none, others=others), fitted

    def outputs(
        self, artifact: Artifact, backend: Backend
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """What the graph of a loaded file gives, [N, C] or [N, D], and its answers, [N]."""
        graph, matrix = graph_of(backend)
        if isinstance(backend, TakesImages):
            images = read_images(self.chosen.source, self.chosen.indices)
            outputs = np.concatenate([graph.run_image(image) for image in images])
        else:
            size = min(_BATCH, artifact.batches[1])
            outputs = run_batches(graph, self.pixels, pixels=artifact.pixels, max_batch=size)
        logits = outputs if matrix is None else class_logits(outputs, matrix)
        return outputs, logits.argmax(axis=1)


@dataclass(frozen=True)
class KnownLimits:
    """Fits the limits of an artifact's files.

    Attributes:
        images: the known images.
        gaussians: those of the artifact, fitted to all unlabeled images.
        held_out: those of `fit_held_out`.
        classes: positions of the classes that have limits of their own.
    """

    images: KnownImages
    gaussians: Gaussians
    held_out: tuple[Gaussians, ...]
    classes: tuple[int, ...]

    def of(self, artifact: Artifact, backend: Backend) -> NoneBelow | None:
        """The limits of one of the artifact's files, which is loaded; see `fit_limits`.

        The unlabeled images' scores are those of Gaussians that were fitted without them.
        """
        images, n_unlabeled = self.images, self.images.n_unlabeled
        outputs, answers = images.outputs(artifact, backend)
        is_finite = np.atleast_1d(np.isfinite(outputs).all(axis=1))
        scores = np.full(len(outputs), np.nan)
        scores[:n_unlabeled] = held_out_scores(self.held_out, outputs[:n_unlabeled])
        scores[n_unlabeled:] = self.gaussians.scores(outputs[n_unlabeled:])
        found = fit_limits(scores[:n_unlabeled][is_finite[:n_unlabeled]], images.share_percent)
        if found is None or not self.classes:
            return found
        of_classes = dict[str, float]()
        for c in self.classes:
            is_own = np.logical_and.reduce([is_finite, answers == c, images.labels == c])
            own = scores[is_own]
            limits = fit_limits(own, images.share_percent)
            if len(own) >= enough_labels(images.share_percent) and limits is not None:
                of_classes[artifact.class_names[c]] = limits.limit
        return dataclasses.replace(found, of_classes=of_classes)


def enough_labels(share_percent: float) -> int:
    """The fewest rightly answered images of a class that give it a limit of its own: 99 for 95 %.

    Its limit is then the fifth lowest score or a higher one, and the share exact to 2.2 points (one
    standard deviation, at 95 %). With 39 images it is 3.4 points, more than classes differ by.
    """
    return least_images(share_percent, position=5)


def choose_known_images(
    trained: RunModel, pool: Images | None, share: str | None, *, apart_from: Collection[str]
) -> KnownImages | None:
    """Draws known images: unlabeled ones, at most half of them, and labeled ones.

    Args:
        trained: the model and its recipe, whose seed draws.
        pool: the recipe's unlabeled images; None if it has none.
        share: the recipe's `export.none_of_these`.
        apart_from: SHA-256 of images that files are compared on.

    Returns:
        The images, each content once; None without a share.

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
    least = 2 * least_images(share_percent)  # so that others than those of a fold are left
    drawn = [] if pool is None else _drawn(pool, trained.loaded.recipe.seed, apart_from)
    few = drawn[: min(MOST_IMAGES, max(least, len(drawn) // 2))]
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
    classes, labeled, key = _labeled(trained, apart_from)
    chosen = pool.only(few)
    if labeled is not None:
        others = labeled.without(pool)
        others = others.only(_some_of_each(others, classes, trained, share_percent))
        chosen = chosen.with_those_of(others)
        more = read_pixels(others.source, others.indices, trained.preprocess)
        pixels = np.concatenate([pixels, more])
    labels = [classes.get(chosen.digests[index], -1) for index in chosen.indices]
    return KnownImages(
        chosen,
        n_unlabeled=len(few),
        labels=np.array(labels),
        pixels=pixels,
        share_percent=share_percent,
        what=f"{len(few)} of {len(pool.indices)} images of data.unlabeled",
        what_labeled=f"{len(labels) - labels.count(-1)} images of {key}",
    )


def _drawn(images: Images, seed: int, apart_from: Collection[str] = ()) -> list[int]:
    """Positions of the images in an order that the seed draws, each content once."""
    drawn: dict[str, int] = {}
    for index in np.random.default_rng(seed).permutation(sorted(images.indices)).tolist():
        if images.digests[index] not in apart_from:
            drawn.setdefault(images.digests[index], index)
    return list(drawn.values())


def _labeled(
    trained: RunModel, apart_from: Collection[str]
) -> tuple[dict[str, int], Images | None, str]:
    """The class of each labeled image by its SHA-256, the images, and their key in the recipe."""
    found = labeled_apart(trained, apart_from)
    if found is None:
        return {}, None, ""
    images, key = found
    labels = zip(images.indices, trained.labels_of(images), strict=True)
    return {images.digests[i]: c for i, c in labels if c is not None}, images, key


def _some_of_each(
    images: Images, classes: Mapping[str, int], trained: RunModel, share_percent: float
) -> list[int]:
    """Positions of as many images of each class; none of a class that has too few for a limit."""
    of_classes: dict[int, list[int]] = {}
    for index in _drawn(images, trained.loaded.recipe.seed):
        of_classes.setdefault(classes[images.digests[index]], []).append(index)
    most = MOST_LABELED // len(trained.class_names)
    least = enough_labels(share_percent)
    return [i for own in of_classes.values() if len(own) >= least for i in own[:most]]
