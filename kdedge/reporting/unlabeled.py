"""What is known of a model without labels: agreement, confidence, predicted classes, samples."""

from __future__ import annotations

from kdedge.config.load import LoadedRecipe
from kdedge.errors import KdedgeError
from kdedge.reporting.blocks import Block, Facts, Plot, SampleCard, Samples, Table
from kdedge.reporting.disagreements import Thumbnail, read_thumbnails
from kdedge.reporting.figures import predicted_classes
from kdedge.reporting.numbers import percent
from kdedge.results import UnlabeledResult


def unlabeled_blocks(found: UnlabeledResult, recipe: LoadedRecipe | None, name: str) -> list[Block]:
    """Makes the figures, the plot of predicted classes and the sample pictures.

    Args:
        found: what was measured.
        recipe: says where the images are; without it there are no pictures.
        name: of the PNG file.
    """
    has_teacher = found.agreement_percent is not None
    theirs = percent(found.teacher_confidence_percent)
    facts = [
        ("images", f"{found.images}; no label of theirs was read"),
        *([("agreement with the teacher", f"{percent(found.agreement_percent)} %")] * has_teacher),
        (
            "mean confidence",
            f"{percent(found.confidence_percent)} %" + f", the teacher's {theirs} %" * has_teacher,
        ),
        ("classes predicted", f"{len(found.predicted):,} of {found.n_classes:,}"),
    ]
    names = sorted(
        dict.fromkeys([*found.predicted, *found.teacher_predicted]),
        key=lambda one: -found.predicted.get(one, 0),
    )
    cells = [[one, *(f"{counts.get(one, 0):,}" for counts in _columns(found))] for one in names]
    header = ["class", "images", *(["teacher's"] if has_teacher else [])]
    what = f"Images of {found.n_images:,} by predicted class."
    return [
        Facts(facts),
        Plot(name, "Predicted classes", predicted_classes(found), what),
        Table("Every predicted class", header, cells, what, is_folded=True),
        _samples(found, recipe),
    ]


def _columns(found: UnlabeledResult) -> list[dict[str, int]]:
    has_teacher = found.agreement_percent is not None
    return [found.predicted, *([found.teacher_predicted] if has_teacher else [])]


def _samples(found: UnlabeledResult, recipe: LoadedRecipe | None) -> Samples:
    thumbnails: dict[str, Thumbnail] = {}
    caption = "The three classes with the highest softmax, percent"
    if found.agreement_percent is not None:
        caption += "; first images on which model and teacher differ"
    try:
        if recipe is not None:
            keys = {sample.image for sample in found.samples}
            thumbnails = dict(read_thumbnails(recipe, keys, is_test=False))
    except KdedgeError as error:
        caption += f". No pictures: {' '.join(str(error).split())}"
    cards = [
        SampleCard(
            sample.image,
            thumbnails.get(sample.image, (None, None))[0],
            [(name, percent(score)) for name, score in sample.top],
            sample.teacher,
        )
        for sample in found.samples
    ]
    return Samples("Sample pictures", cards, f"{caption.removesuffix('.')}.")
