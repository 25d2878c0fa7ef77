"""The images on which INT8 files are furthest from the float32 model, with small pictures."""

from __future__ import annotations

import base64
import contextlib
import io
import re
from collections.abc import Iterable

from PIL import Image

from kdedge.config.load import LoadedRecipe
from kdedge.data.classes import load_class_names
from kdedge.data.open import open_source
from kdedge.deploy.parity import SMOKE_SET, read_smoke_set
from kdedge.errors import KdedgeError
from kdedge.report.blocks import Gallery, Shown
from kdedge.report.numbers import percent
from kdedge.results import ParityResult, WorstImage
from kdedge.runtime.artifact import Artifact
from kdedge.runtime.preprocess import UnusableImage, decode_image

SIDE_PX = 192
"""Longest side of an embedded picture: twice what is shown, for sharp screens."""

_SMOKE_KEY = re.compile(re.escape(SMOKE_SET) + r"\[(\d+)\]")

Pictures = dict[str, tuple[str, "str | None"]]
"""By key: a picture as a data URI, and the image's class where that is known."""


def galleries(artifact: Artifact, recipe: LoadedRecipe | None) -> list[Gallery]:
    """One gallery for each INT8 file that was compared with its model.

    Args:
        artifact: what was exported.
        recipe: says where the images are; None where it is damaged, then smoke sets alone show any.
    """
    compared = [
        (file.name, file.parity)
        for file in artifact.files
        if file.precision == "int8" and file.parity is not None and file.parity.worst
    ]
    keys: dict[str, set[str]] = {}
    for _, parity in compared:
        keys.setdefault(parity.images, set()).update(entry.image for entry in parity.worst)
    # Once for all files that were compared on the same images: listing a source takes a while
    read = {images: _read(artifact, recipe, wanted, images) for images, wanted in keys.items()}
    return [_gallery(name, parity, *read[parity.images]) for name, parity in compared]


def _read(
    artifact: Artifact, recipe: LoadedRecipe | None, keys: set[str], images: str
) -> tuple[Pictures, str]:
    """Pictures of images, and why there are none where there are none."""
    try:
        return _pictures(artifact, recipe, keys, images), ""
    except KdedgeError as error:
        return {}, f" No pictures: {' '.join(str(error).split())}"


def _gallery(name: str, parity: ParityResult, pictures: Pictures, problem: str) -> Gallery:
    lost = sum(entry.image not in pictures for entry in parity.worst)
    if lost and not problem:
        problem = f" {lost} of these images are not there any more."
    caption = (
        f"The {len(parity.worst)} of {parity.n_images:,} images ({parity.images}) furthest from the"
        f" float32 model, other answers first; agreement {percent(parity.agreement_percent)} %,"
        f" measured with {parity.runtime} at export. Distance: total variation of the two"
        f" softmaxes, 0 to 1.{problem}"
    )
    shown = [_shown(entry, pictures) for entry in parity.worst]
    return Gallery(f"{name} against the float32 model", shown, caption)


def _shown(entry: WorstImage, pictures: Pictures) -> Shown:
    picture, label = pictures.get(entry.image, (None, None))
    return Shown(
        image=entry.image,
        picture=picture,
        label=label,
        reference=entry.reference_class,
        answer=entry.predicted_class or "no finite scores",
        distance="-" if entry.distance is None else f"{entry.distance:.4f}",
        is_other=entry.predicted_class != entry.reference_class,
    )


def _pictures(
    artifact: Artifact, recipe: LoadedRecipe | None, keys: set[str], images: str
) -> Pictures:
    """Reads images by their keys; those that cannot be read are left out.

    Raises:
        KdedgeError: none can be: their source is gone, or is not known.
    """
    if images.endswith(SMOKE_SET):
        return _from_smoke_set(artifact, keys)
    if recipe is None:
        return {}
    data = recipe.recipe.data
    is_test = not images.endswith("data.unlabeled")
    spec = data.test if is_test else data.unlabeled
    if spec is None:
        return {}
    names = load_class_names(recipe.recipe.classes, data=data)
    source = open_source(spec, class_names=names, labeled=is_test, data=data)
    pictures: Pictures = {}
    for i, item in enumerate(source.items):
        if item.key in keys:
            with contextlib.suppress(UnusableImage):
                picture = _jpeg_uri(decode_image(source.read(i)))
                pictures[item.key] = picture, None if item.label is None else names[item.label]
    return pictures


def _from_smoke_set(artifact: Artifact, keys: Iterable[str]) -> Pictures:
    pixels = read_smoke_set(artifact.checked(SMOKE_SET)).pixels  # [K, S, S, 3]
    pictures: Pictures = {}
    for key in keys:
        found = _SMOKE_KEY.fullmatch(key)
        if found is not None and int(found[1]) < len(pixels):
            pictures[key] = _jpeg_uri(Image.fromarray(pixels[int(found[1])])), None
    return pictures


def _jpeg_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.thumbnail((SIDE_PX, SIDE_PX))
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
