"""Makes galleries of the images on which INT8 files differ most from the float32 model."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Container, Iterator

from PIL import Image

from kdedge.config.load import LoadedRecipe
from kdedge.data.classes import load_class_names
from kdedge.data.open import open_source
from kdedge.deploy.parity import SMOKE_SET, load_smoke_set
from kdedge.errors import KdedgeError
from kdedge.reporting.blocks import Gallery, GalleryImage
from kdedge.results import ParityResult
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.preprocess import UnusableImage, decode_image
from kdedge.tables import percent

SIDE_PX = 192
"""Longest side of a thumbnail: twice the size on the page, for high-resolution screens."""

_SMOKE_KEY = re.compile(re.escape(SMOKE_SET) + r"\[(\d+)\]")

Thumbnail = tuple[str, "str | None"]
"""An image as a data URI, and its class; None if unknown."""


def galleries(artifact: Artifact, recipe: LoadedRecipe | None) -> list[Gallery]:
    """Makes one gallery for each INT8 file that was compared with the float32 model.

    Args:
        artifact: the export.
        recipe: says where the images are; None shows only images of a smoke set.
    """
    compared = [
        (file.name, file.parity)
        for file in artifact.files
        if file.precision == "int8" and file.parity is not None and file.parity.worst
    ]
    keys: dict[str, set[str]] = {}
    for _, parity in compared:
        keys.setdefault(parity.images, set()).update(entry.image for entry in parity.worst)
    # Read once for all files that were compared on the same images: listing a source is slow
    thumbnails: dict[str, dict[str, Thumbnail]] = {}
    problems: dict[str, str] = {}
    for images, wanted in keys.items():
        try:
            thumbnails[images] = dict(_thumbnails(artifact, recipe, wanted, images))
        except KdedgeError as error:
            problems[images] = f" No pictures: {' '.join(str(error).split())}"
    return [
        _gallery(name, parity, thumbnails.get(parity.images, {}), problems.get(parity.images, ""))
        for name, parity in compared
    ]


def _gallery(
    name: str, parity: ParityResult, thumbnails: dict[str, Thumbnail], problem: str
) -> Gallery:
    n_missing = sum(entry.image not in thumbnails for entry in parity.worst)
    if n_missing and not problem:
        problem = f" {n_missing} of these images no longer exist."
    caption = (
        f"The {len(parity.worst)} of {parity.n_images:,} images ({parity.images}) that differ"
        " most from the float32 model, different predictions first; agreement"
        f" {percent(parity.agreement_percent)} %, measured with {parity.runtime} at export."
        f" Distance: total variation of the two softmaxes, 0 to 1.{problem}"
    )
    images = []
    for entry in parity.worst:
        picture, label = thumbnails.get(entry.image, (None, None))
        predicted = entry.predicted_class or "no finite scores"
        distance = "-" if entry.distance is None else f"{entry.distance:.4f}"
        images.append(
            GalleryImage(entry.image, picture, label, entry.reference_class, predicted, distance)
        )
    return Gallery(f"{name} against the float32 model", images, caption)


def _thumbnails(
    artifact: Artifact, recipe: LoadedRecipe | None, keys: set[str], images: str
) -> Iterator[tuple[str, Thumbnail]]:
    """Reads images by their keys; unreadable ones are left out.

    Raises:
        KdedgeError: their source no longer exists.
    """
    if images.endswith(SMOKE_SET):
        pixels = load_smoke_set(artifact).pixels  # [K, S, S, 3]
        for key in keys:
            found = _SMOKE_KEY.fullmatch(key)
            if found is not None and int(found[1]) < len(pixels):
                yield key, (jpeg_uri(Image.fromarray(pixels[int(found[1])])), None)
        return
    if recipe is not None:
        yield from read_thumbnails(recipe, keys, is_test=not images.endswith("data.unlabeled"))


def read_thumbnails(
    recipe: LoadedRecipe, keys: Container[str], *, is_test: bool
) -> Iterator[tuple[str, Thumbnail]]:
    """Reads test or unlabeled images of a recipe by their keys; unreadable ones are left out.

    Raises:
        KdedgeError: their source no longer exists.
    """
    data = recipe.recipe.data
    spec = data.test if is_test else data.unlabeled
    if spec is None:
        return
    names = load_class_names(recipe.recipe.classes, data=data)
    source = open_source(spec, class_names=names, labeled=is_test, data=data)
    for i, item in enumerate(source.items):
        if item.key in keys:
            with contextlib.suppress(UnusableImage):
                label = None if item.label is None else names[item.label]
                yield item.key, (jpeg_uri(decode_image(source.read(i))), label)


def jpeg_uri(image: Image.Image) -> str:
    """A thumbnail as a data URI; the image itself is made smaller."""
    file = io.BytesIO()
    image.thumbnail((SIDE_PX, SIDE_PX))
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
