"""The soft labels that a student learned from: images by class, before and after."""

from __future__ import annotations

from kdedge.reporting.blocks import Block, Facts, Plot, Table
from kdedge.reporting.figures import class_shares
from kdedge.reporting.numbers import percent
from kdedge.results import PoolLabelsResult


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
