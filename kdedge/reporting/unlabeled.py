"""Makes the blocks about a model without labels: agreement, confidence, classes, samples."""

from __future__ import annotations

from kdedge.config.load import LoadedRecipe
from kdedge.reporting.blocks import Block, Facts, Plot, Table
from kdedge.reporting.figures import class_shares, predicted_classes
from kdedge.reporting.samples import sample_blocks
from kdedge.results import PoolLabelsResult, UnlabeledResult
from kdedge.tables import percent


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


def target_blocks(found: PoolLabelsResult, name: str) -> list[Block]:
    """Figures of the labels, and the images of each class before and after.

    Args:
        found: figures of the labels.
        name: name of the PNG file.
    """
    facts = [
        ("images", f"{found.n_images:,}, {found.n_labeled:,} of them with a given label"),
        ("features", str(found.made_from.get("features"))),
        ("another class than the teacher's", f"{percent(found.changed_percent)} %"),
        ("classes with images", f"{_n_used(found.before)} before, {_n_used(found.after)} after"),
    ]
    if found.accuracy_percent is not None:
        before, after = percent(found.accuracy_before_percent), percent(found.accuracy_percent)
        right = f"{before} % before, {after} % after, of the images without a given label"
        facts.append(("correct labels", right))
    names = sorted(
        dict.fromkeys([*found.before, *found.after]), key=lambda one: -found.after.get(one, 0)
    )
    counts = [(found.before.get(one, 0), found.after.get(one, 0)) for one in names]
    cells = [
        [one, f"{old:,}", f"{new:,}", f"{new - old:+,}"]
        for one, (old, new) in zip(names, counts, strict=True)
    ]
    what = "Images by most probable class: the teacher's, and the transductive label's."
    every = {one: found.before.get(one, 0) for one in names}
    models = {"teacher": every, "label": found.after}
    return [
        Facts(facts, is_wide=False),
        Plot(name, "Classes before and after", class_shares(models, found.n_images), what),
        Table("Every class", ["class", "before", "after", "change"], cells, what, is_folded=True),
    ]


def _n_used(counts: dict[str, int]) -> str:
    return f"{len(counts):,}"
