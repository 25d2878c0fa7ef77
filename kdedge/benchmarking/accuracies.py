"""Accuracies in tables of speed: those in one column are of the same images."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.benchmarking.grid import Grid
from kdedge.speed_results import Accuracy, ModelFacts, accuracy_sets


def accuracy_columns(sets: Sequence[Accuracy]) -> list[tuple[str, Accuracy]]:
    """The heading of each set of images: `acc.`, with the number of images from the second on."""
    return [
        ("acc." if not number else f"acc. {'files' if one.n_images is None else one.n_images}", one)
        for number, one in enumerate(sets)
    ]


def accuracy_grids(models: Sequence[ModelFacts], labels: Sequence[str]) -> list[Grid]:
    """A table for each set of images."""
    sets = accuracy_sets(models)
    grids = []
    for images in sets:
        rows = []
        for label, row in zip(labels, models, strict=True):
            found = row.accuracy_beside(images)
            if found is not None:
                values = (found.base, found.novel, found.harmonic_mean, found.all)
                rows.append([label, *map(percent, values)])
        title = f"Accuracy, top-1 in percent, on {images.images_text}"
        grids.append(Grid(title, ["model", "base", "novel", "HM", "all"], rows))
    return grids


def agreement_grid(models: Sequence[ModelFacts], labels: Sequence[str]) -> Grid:
    """How files agree with their float32 model, and on which images."""
    rows = [
        [label, percent(row.accuracy.agreement), row.accuracy.source]
        for label, row in zip(labels, models, strict=True)
        if row.accuracy is not None and row.accuracy.agreement is not None
    ]
    title = "Top-1 agreement of files with the float32 model, percent"
    return Grid(title, ["model", "agree", "images"], rows)


def percent(value: float | None) -> str:
    """A percentage with two digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"
