"""Makes the blocks about a model without labels: agreement, confidence, classes, samples."""

from __future__ import annotations

from kdedge.config.load import LoadedRecipe
from kdedge.reporting.blocks import Block, Facts, Plot, Table
from kdedge.reporting.figures import predicted_classes
from kdedge.reporting.numbers import percent
from kdedge.reporting.samples import sample_blocks
from kdedge.results import UnlabeledResult


def unlabeled_blocks(found: UnlabeledResult, recipe: LoadedRecipe | None, name: str) -> list[Block]:
    """Makes the facts, the plot of predicted classes and the sample images.

    Args:
        found: the measurements.
        recipe: says where the images are; without it there are no pictures.
        name: name of the PNG file.
    """
    has_teacher = found.agreement_percent is not None
    theirs = percent(found.teacher_confidence_percent)
    facts = [
        ("images", f"{found.images}; labels were not used"),
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
    sampled = "Images on which model and teacher differ" if has_teacher else "Evenly spaced"
    return [
        Facts(facts, is_wide=False),
        Plot(name, "Predicted classes", predicted_classes(found), what),
        Table("Every predicted class", header, cells, what, is_folded=True),
        *sample_blocks({"Sample pictures": found.samples}, recipe, sampled, is_test=False),
    ]


def _columns(found: UnlabeledResult) -> list[dict[str, int]]:
    has_teacher = found.agreement_percent is not None
    return [found.predicted, *([found.teacher_predicted] if has_teacher else [])]
