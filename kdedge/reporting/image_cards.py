"""Images in a report: samples of an evaluation, and images that an exported file changes most."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from PIL import Image

from kdedge.artifacts.parity import SMOKE_SET, load_smoke_set
from kdedge.config.load import LoadedRecipe
from kdedge.data.classes import load_class_names
from kdedge.data.open import open_source
from kdedge.errors import DataError, KdedgeError
from kdedge.records.evaluation import SampleImage, WorstImage
from kdedge.records.tables import decimals
from kdedge.reporting.blocks import Card, Cards
from kdedge.runtime.artifact import Artifact, ModelFile
from kdedge.runtime.preprocess import ImageError, decode_image

# Longest side of a thumbnail: twice the size on the page, for high-resolution screens
SIDE_PX = 240

_Thumbnail = tuple[str, "str | None"]  # an image as a data URI, and its class; None if unknown


def sample_cards(
    groups: Mapping[str, Sequence[SampleImage]], recipe: LoadedRecipe | None, *, is_test: bool
) -> list[Cards]:
    """Makes one row of images for each group that is not empty.

    Args:
        groups: samples by title.
        recipe: names the folders of the images; None shows cards without thumbnails.
        is_test: whether the samples are test images; else they are unlabeled images.
    """
    keys = {sample.image for group in groups.values() for sample in group}
    thumbnails, problem = _read_all(_from_recipe(recipe, keys, is_test=is_test))
    rows = [
        Cards(title, [_card(sample, thumbnails) for sample in group])
        for title, group in groups.items()
        if group
    ]
    if rows:
        rows[-1] = replace(rows[-1], caption=problem)
    return rows


def _card(sample: SampleImage, thumbnails: Mapping[str, _Thumbnail]) -> Card:
    name, score = sample.top[0]
    lines = [f"{name}, {score:.0f}\u00a0%"]
    if sample.label is not None:
        lines.append("right" if sample.label == name else f"is {sample.label}")
    if sample.teacher is not None:
        lines.append(f"teacher: {sample.teacher}")
    return Card(sample.image, thumbnails.get(sample.image, (None, None))[0], lines)


def changed_cards(artifact: Artifact, file: ModelFile, recipe: LoadedRecipe | None) -> Cards | None:
    """Images on which a file differs most from the float32 model; None if it differs on none.

    Args:
        artifact: the export.
        file: one of its files.
        recipe: names the folders of the images; None shows only images of a smoke set.
    """
    parity = file.parity
    if parity is None:
        return None
    worst = [
        entry
        for entry in parity.worst
        if entry.predicted_class != entry.reference_class
        or (entry.distance or 0) >= 0.5e-4  # four decimals are shown
    ]
    if not worst:
        return None
    keys = {entry.image for entry in worst}
    if parity.images_hash is None:
        thumbnails, problem = _read_all(_from_smoke_set(artifact, keys))
    else:
        is_test = parity.test_set is not None
        thumbnails, problem = _read_all(_from_recipe(recipe, keys, is_test=is_test))
    n_missing = len(keys - thumbnails.keys())
    if n_missing and not problem:
        problem = f" {n_missing} of these images no longer exist."
    caption = (
        f"The {len(worst)} of {parity.n_images:,} images ({parity.images}) that"
        f" {file.name} changes most, other predictions first; agreement"
        f" {decimals(parity.agreement_percent)} %. Distance: total variation of the two softmaxes,"
        f" 0 to 1.{problem}"
    )
    cards = [_changed_card(entry, *thumbnails.get(entry.image, (None, None))) for entry in worst]
    return Cards(f"{file.name} against the float32 model", cards, caption)


def _changed_card(entry: WorstImage, thumbnail: str | None, label: str | None) -> Card:
    predicted = entry.predicted_class or "no finite scores"
    same = predicted == entry.reference_class
    lines = [f"{predicted} in both" if same else f"{entry.reference_class} → {predicted}"]
    lines += [] if label is None else [f"is {label}"]
    lines += [] if entry.distance is None else [f"distance {entry.distance:.4f}"]
    return Card(entry.image, thumbnail, lines)


def _read_all(thumbnails: Iterator[tuple[str, _Thumbnail]]) -> tuple[dict[str, _Thumbnail], str]:
    """Reads thumbnails by key; if that fails, returns none and the reason, to end a caption."""
    try:
        return dict(thumbnails), ""
    except KdedgeError as error:
        return {}, f" No images: {' '.join(str(error).split())}"


def _from_smoke_set(artifact: Artifact, keys: Collection[str]) -> Iterator[tuple[str, _Thumbnail]]:
    for i, image in enumerate(load_smoke_set(artifact).pixels):  # [K, S, S, 3]
        if (key := f"{SMOKE_SET}[{i}]") in keys:
            yield key, (_jpeg_uri(Image.fromarray(image)), None)


def _from_recipe(
    recipe: LoadedRecipe | None, keys: Collection[str], *, is_test: bool
) -> Iterator[tuple[str, _Thumbnail]]:
    """Reads test or unlabeled images of a recipe by their keys; unreadable ones are left out.

    Raises:
        KdedgeError: their source no longer exists, or the recipe does not name it.
    """
    data = None if recipe is None else recipe.recipe.data
    spec = None if data is None else data.test if is_test else data.unlabeled
    if not keys:
        return
    if recipe is None or data is None or spec is None:
        raise DataError("the recipe does not name these images.")
    names = load_class_names(recipe.recipe.classes, data=data)
    source = open_source(spec, class_names=names, labeled=is_test, data=data)
    for i, item in enumerate(source.items):
        if item.key in keys:
            with contextlib.suppress(ImageError):
                label = None if item.label is None else names[item.label]
                yield item.key, (_jpeg_uri(decode_image(source.read(i))), label)


def _jpeg_uri(image: Image.Image) -> str:
    """Makes a thumbnail as a data URI; shrinks the image in place."""
    file = io.BytesIO()
    image.thumbnail((SIDE_PX, SIDE_PX))
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
