"""Makes blocks of sample images of an evaluation, with their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdedge.config.load import LoadedRecipe
from kdedge.errors import KdedgeError
from kdedge.reporting.blocks import SampleCard, Samples
from kdedge.reporting.disagreements import Thumbnail, read_thumbnails
from kdedge.results import SampleImage, SampleKind
from kdedge.tables import percent

_TITLES: Mapping[SampleKind, str] = {
    "right": "Right, evenly spaced",
    "wrong": "Wrong, with the highest confidence",
    "most unsure": "Lowest confidence, right or wrong",
}


def labeled_samples(
    samples: Mapping[SampleKind, Sequence[SampleImage]], recipe: LoadedRecipe | None
) -> list[Samples]:
    """Makes the blocks of test images, one for each kind that has images."""
    found = {_TITLES[kind]: samples[kind] for kind in _TITLES if samples.get(kind)}
    what = "Of the recipe's test images"
    return sample_blocks(found, recipe, what, is_test=True)


def sample_blocks(
    groups: Mapping[str, Sequence[SampleImage]],
    recipe: LoadedRecipe | None,
    what: str,
    *,
    is_test: bool,
) -> list[Samples]:
    """Makes one block of images for each group.

    Args:
        groups: by title.
        recipe: says where the images are; without it there are no pictures.
        what: begins the last block's caption.
        is_test: whether they are test images; else unlabeled ones.
    """
    every = [sample for group in groups.values() for sample in group]
    caption = f"{what}: the three classes with the highest softmax, percent"
    thumbnails: dict[str, Thumbnail] = {}
    try:
        if recipe is not None and every:
            keys = {sample.image for sample in every}
            thumbnails = dict(read_thumbnails(recipe, keys, is_test=is_test))
    except KdedgeError as error:
        caption += f". No pictures: {' '.join(str(error).split())}"
    last = list(groups)[-1:]
    return [
        Samples(
            title,
            [_card(sample, thumbnails) for sample in group],
            f"{caption.removesuffix('.')}." if [title] == last else "",
        )
        for title, group in groups.items()
    ]


def _card(sample: SampleImage, thumbnails: Mapping[str, Thumbnail]) -> SampleCard:
    return SampleCard(
        sample.image,
        thumbnails.get(sample.image, (None, None))[0],
        [(name, percent(score)) for name, score in sample.top],
        sample.teacher,
        sample.label,
    )
