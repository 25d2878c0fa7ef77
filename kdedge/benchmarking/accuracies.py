"""Accuracies in speed tables; each column has one set of images."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.speed_results import Accuracy, ModelFacts, accuracy_sets
from kdedge.tables import Grid


def accuracy_columns(sets: Sequence[Accuracy]) -> list[tuple[str, Accuracy]]:
    """Column headings of the sets of images: `acc.`, from the second on with their number."""
    return [
        ("acc." if not number else f"acc. {'files' if one.n_images is None else one.n_images}", one)
        for number, one in enumerate(sets)
    ]


def accuracy_grids(models: Sequence[ModelFacts], labels: Sequence[str]) -> list[Grid]:
    """One table per set of images."""
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
    """Agreement of files with their float32 model, and the images it was measured on."""
    rows = [
        [label, percent(row.accuracy.agreement), row.accuracy.source]
        for label, row in zip(labels, models, strict=True)
        if row.accuracy is not None and row.accuracy.agreement is not None
    ]
    title = "Top-1 agreement of files with the float32 model, percent"
    return Grid(title, ["model", "agree", "images"], rows)


def percent(value: float | None) -> str:
    """A percentage with two digits; a dash for None."""
    return "-" if value is None else f"{value:.2f}"
