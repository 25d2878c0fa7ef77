"""What `kdedge bench` measured: its tables, and accuracy against latency with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdedge.benchmarking.tables import NamedRow, machine, notes, pareto_front, speed_grids
from kdedge.reporting.blocks import Block, Note, Plot, Table
from kdedge.reporting.figures import CostPoint, accuracy_against_cost
from kdedge.speed_results import Accuracy, SpeedResult, SpeedRow, accuracy_sets
from kdedge.tables import Grid, figure, percent


def speed_blocks(result: SpeedResult) -> list[Block]:
    """Makes the tables of one call of `kdedge bench`, and remarks on them."""
    return [*(as_table(grid, how(result)) for grid in speed_grids(result)), Note(notes(result))]


def as_table(grid: Grid, caption: str) -> Table:
    """One of bench's tables, for a page."""
    return Table(grid.title, grid.header, grid.rows, caption)


def how(result: SpeedResult) -> str:
    """Machine, command and time of a measurement."""
    return f"{machine(result)}; {result.command}, {result.measured_at}."


def front_blocks(rows: Sequence[NamedRow], measured: str, name: str) -> list[Block]:
    """Makes a plot and a table per set of test images; none if no accuracy is known.

    A set is left out if a larger plot of the same accuracy has all its models.

    Args:
        rows: measured on one machine.
        measured: the machine and the measurement, for the caption.
        name: of the PNG file.
    """
    fronts = [_front(rows, images) for images in accuracy_sets([row for _, row in rows])]
    fronts.sort(key=lambda front: -len(front.points))
    blocks: list[Block] = []
    shown: list[_Front] = []
    for front in fronts:
        if front.points and not any(front.is_within(other) for other in shown):
            number = f"-{len(shown) + 1}" if shown else ""
            blocks += _blocks(front, len(rows), measured, f"{name}{number}")
            shown.append(front)
    return blocks


@dataclass(frozen=True)
class _Front:
    """Models with accuracies on the same images.

    Attributes:
        images: describes the images.
        accuracy_name: the name of the accuracy.
        batch: images per call.
        points: the models.
        sources: origin of each accuracy, by model.
    """

    images: str
    accuracy_name: str
    batch: int
    points: list[CostPoint]
    sources: dict[str, str]

    def is_within(self, other: _Front) -> bool:
        """Whether another plot also shows these models, with the same accuracy."""
        is_same = self.accuracy_name == other.accuracy_name
        return is_same and self.sources.keys() <= other.sources.keys()


def _front(rows: Sequence[NamedRow], images: Accuracy) -> _Front:
    """The models at the smallest batch that were measured on these images."""
    measurements = [found for _, row in rows for found in row.measurements]
    batch = min((found.batch for found in measurements if found.inputs != "image file"), default=1)
    known_rows = [(label, row, row.accuracy_beside(images)) for label, row in rows]
    key, accuracy_name = shared_accuracy([known for _, _, known in known_rows if known is not None])
    points, sources = [], {}
    for label, row, known in known_rows:
        found = row.alone(batch)
        accuracy = None if known is None else getattr(known, key)
        if found is not None and found.doubt is None and known is not None and accuracy is not None:
            points.append(CostPoint(label, _kind(row), found.p50_ms, accuracy))
            sources[label] = known.source
    return _Front(images.images_text, accuracy_name, batch, points, sources)


def _blocks(front: _Front, n_rows: int, measured: str, name: str) -> list[Block]:
    points, accuracy_name = front.points, front.accuracy_name
    time_name = f"ms per call at batch {front.batch}, median"
    caption = (
        f"All accuracies are on the same images ({front.images}). The dashed line is the Pareto"
        " front: no other model is both faster and more accurate."
    )
    if len(points) < n_rows:
        caption += (
            f" {n_rows - len(points)} of {n_rows} models are left out: their accuracy on these"
            " images is unknown, or their times are missing or in doubt."
        )
    draw = accuracy_against_cost(
        points, accuracy_name=f"{accuracy_name}, %", cost_name=f"{time_name} (log scale)"
    )
    title = f"Accuracy against latency: {accuracy_name}"
    best = set(pareto_front([(point.cost, point.accuracy) for point in points]))
    cells = [
        [
            *(point.label, front.sources[point.label], "yes" if i in best else ""),
            *(figure(point.cost), percent(point.accuracy)),
        ]
        for i, point in sorted(enumerate(points), key=lambda entry: entry[1].cost)
    ]
    header = ["model", "accuracy from", "on the front", "ms", "%"]
    table_caption = f"Times: {time_name}. Accuracies: {accuracy_name}, percent, {front.images}."
    return [
        Plot(name, title, draw, f"{caption} {measured}"),
        Table("The same as numbers", header, cells, table_caption, n_text=3),
    ]


def shared_accuracy(known: Sequence[Accuracy]) -> tuple[str, str]:
    """The accuracy that all models have, as the key of `Accuracy` and in words.

    Exported files have only the one over all names.
    """
    if all(accuracy.harmonic_mean is not None for accuracy in known):
        return "harmonic_mean", "harmonic mean of base and novel"
    return "all", "accuracy over all names"


def _kind(row: SpeedRow) -> str:
    if row.n_bytes is None:
        return "model"
    return "engine" if row.model.endswith(".engine") else "file"
