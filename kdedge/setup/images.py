"""Image sources of a recipe: opened, scanned once, unreadable images left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kdedge._progress import progress
from kdedge.config.recipe import (
    Recipe,
    SourceSpec,
    UnlabeledSpec,
)
from kdedge.data.few_shot import Draws
from kdedge.data.images import BadImage, check_limit, image_list_hash, put_together, scan
from kdedge.data.open import is_own_split, open_source
from kdedge.data.scan_cache import ScanCache
from kdedge.data.sources import Joined, Source, WithoutLabels
from kdedge.distributed import SINGLE_PROCESS, ProcessGroup
from kdedge.errors import DataError, RecipeError
from kdedge.setup.classes import Classes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """A source and its readable images.

    Attributes:
        source: gives bytes and labels by index.
        indices: positions in the source that are used.
        skipped: unreadable images and why.
        digests: hash of the bytes at each readable position.
        is_own_split: whether a benchmark set's own rule chose them, its published split missing.
    """

    source: Source
    indices: tuple[int, ...]
    skipped: tuple[BadImage, ...]
    digests: Mapping[int, str]
    is_own_split: bool = False

    @property
    def list_hash(self) -> str:
        """Hash of the images in use, for provenance."""
        return image_list_hash(self.source, self.indices, self.digests)

    def only(self, indices: Sequence[int]) -> Images:
        """The same source with fewer images."""
        return replace(self, indices=tuple(indices))

    def labels(self) -> dict[int, int]:
        """Position in the source -> class index, of the images that have a label."""
        found = {index: self.source.items[index].label for index in self.indices}
        return {index: label for index, label in found.items() if label is not None}

    def without(self, other: Images) -> Images:
        """The images whose contents are not among another's."""
        contents = {other.digests[index] for index in other.indices}
        return self.only([i for i in self.indices if self.digests[i] not in contents])

    def with_those_of(self, other: Images) -> Images:
        """The images in use of both, of one source behind the other."""
        n_own = len(self.source.items)
        return Images(
            Joined(self.source, other.source),
            (*self.indices, *(n_own + i for i in other.indices)),
            (*self.skipped, *other.skipped),
            {**self.digests, **{n_own + i: digest for i, digest in other.digests.items()}},
        )

    def of_classes(self, classes: Sequence[int]) -> Images:
        """The images whose label is one of these classes."""
        wanted = set(classes)
        return self.only([i for i in self.indices if self.source.items[i].label in wanted])


def load_images(
    recipe: Recipe,
    key: Literal["unlabeled", "labeled", "validation", "test"],
    classes: Classes,
    *,
    group: ProcessGroup = SINGLE_PROCESS,
    scans: ScanCache | None = None,
) -> Images | None:
    """Opens a source of the recipe and reads every image once; None where there is none.

    Several processes read a part of the source each. Images that `scans` knows are not read again.

    Raises:
        DataError: more images are unreadable than the recipe accepts, or labels and class names
            differ.
    """
    spec: SourceSpec | None = getattr(recipe.data, key)
    if spec is None:
        return None
    if isinstance(spec, UnlabeledSpec) and spec.per_class is not None:
        return _draw_unlabeled(recipe, spec, spec.per_class, classes, group, scans)
    source = open_source(
        spec, class_names=classes.names, labeled=key != "unlabeled", data=recipe.data
    )
    images = _readable(source, recipe, key, group, scans)
    return replace(images, is_own_split=is_own_split(spec, data=recipe.data))


def _draw_unlabeled(
    recipe: Recipe,
    spec: UnlabeledSpec,
    per_class: int,
    classes: Classes,
    group: ProcessGroup,
    scans: ScanCache | None,
) -> Images:
    """A number of readable images of every class, whose labels are read for this alone."""
    try:
        source = open_source(spec, class_names=classes.names, labeled=True, data=recipe.data)
    except DataError as error:
        raise DataError(
            f"data.unlabeled.per_class is {per_class}, which needs each image's class for the"
            f" draw:\n{error}\n  Leave per_class out to use all images, whatever they show."
        ) from error
    images = _readable(source, recipe, "unlabeled", group, scans)
    draws = Draws(spec, shots=per_class, seed=recipe.seed, data=recipe.data)
    drawn = draws.take(spec, source, images.indices, shots=per_class, class_names=classes.names)
    return replace(images, source=WithoutLabels(source), indices=tuple(drawn))


def _readable(
    source: Source, recipe: Recipe, key: str, group: ProcessGroup, scans: ScanCache | None
) -> Images:
    """A source's readable images; each is read once."""
    own = group.shard(len(source.items))
    with progress(f"reading data.{key}", own.stop - own.start) as advance:
        found = scan(source, rows=own, progress=advance, cache=scans)
    result = put_together(group.all_gather(found))
    limit = recipe.data.bad_image_limit(len(source.items))
    check_limit(result, limit=limit, what=f"data.{key}")
    if result.bad and group.is_rank0:
        log.warning(
            "%d of %d images of data.%s cannot be read and are skipped.",
            len(result.bad),
            len(source.items),
            key,
        )
    digests = dict(zip(result.good, result.digests, strict=True))
    return Images(source, result.good, result.bad, digests)


def require_images(images: Images | None, key: str, why: str) -> Images:
    """Those images, or an error that names the key that is missing."""
    if images is None:
        raise RecipeError(
            f"The recipe has no data.{key}, and {why}.\n  Add it; `kdedge schema` shows how."
        )
    return images
