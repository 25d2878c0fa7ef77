"""What `kdedge bench` measured: its tables, and accuracy against latency with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kdedge.benchmarking.tables import NamedRow, machine, make_grids, named_rows, notes
from kdedge.reporting.blocks import Block, Note, Plot
from kdedge.reporting.figures import CostPoint, accuracy_against_cost
from kdedge.speed_results import Accuracy, SpeedResult, SpeedRow, accuracy_sets


def speed_blocks(result: SpeedResult, name: str) -> list[Block]:
    """Makes the plots and tables of one call of `kdedge bench`, and remarks on them.

    Args:
        result: the measurement.
        name: of the plots.
    """
    measured = f"{machine(result)}; {result.command}, {result.measured_at}."
    tables = make_grids(result)
    plots = front_plots(named_rows(result), name)
    return [*plots, *tables, Note([measured, *notes(result)])]


def front_plots(rows: Sequence[NamedRow], name: str) -> list[Plot]:
    """Makes a plot per set of test images; none if no accuracy is known.

    A set is left out if a larger plot of the same accuracy has all its models.

    Args:
        rows: measured on one machine.
        name: of the first plot.
    """
    fronts = [_front(rows, images) for images in accuracy_sets([row for _, row in rows])]
    fronts.sort(key=lambda front: -len(front.points))
    shown: list[_Front] = []
    for front in fronts:
        if front.points and not any(front.is_within(other) for other in shown):
            shown.append(front)
    return [
        _plot(front, len(rows), f"{name}-{number}" if number > 1 else name)
        for number, front in enumerate(shown, start=1)
    ]


@dataclass(frozen=True)
class _Front:
    """Models with accuracies on the same images.

    Attributes:
        images: describes the images.
        accuracy_name: the name of the accuracy.
        batch: images per call.
        points: the models.
    """

    images: str
    accuracy_name: str
    batch: int
    points: list[CostPoint]

    def is_within(self, other: _Front) -> bool:
        """Whether another plot also shows these models, with the same accuracy."""
        mine, theirs = ({point.label for point in front.points} for front in (self, other))
        return self.accuracy_name == other.accuracy_name and mine <= theirs


def _front(rows: Sequence[NamedRow], images: Accuracy) -> _Front:
    """The models at the smallest batch that were measured on these images."""
    measurements = [found for _, row in rows for found in row.measurements]
    batch = min((found.batch for found in measurements if found.inputs != "image file"), default=1)
    known_rows = [(label, row, row.accuracy_beside(images)) for label, row in rows]
    key, accuracy_name = shared_accuracy([known for _, _, known in known_rows if known is not None])
    points = []
    for label, row, known in known_rows:
        found = row.alone(batch)
        accuracy = None if known is None else getattr(known, key)
        if found is not None and found.doubt is None and accuracy is not None:
            points.append(CostPoint(label, _kind(row), found.p50_ms, accuracy))
    return _Front(images.images_text, accuracy_name, batch, points)


def _plot(front: _Front, n_rows: int, name: str) -> Plot:
    caption = (
        f"All accuracies are on the same images ({front.images}). The dashed line is the Pareto"
        " front: no other model is both faster and more accurate."
    )
    if len(front.points) < n_rows:
        caption += (
            f" {n_rows - len(front.points)} of {n_rows} models are left out: their accuracy on"
            " these images is unknown, or their times are missing or in doubt."
        )
    draw = accuracy_against_cost(
        front.points,
        accuracy_name=f"{front.accuracy_name}, %",
        cost_name=f"ms per call at batch {front.batch}, median (log scale)",
    )
    return Plot(name, f"Accuracy against latency: {front.accuracy_name}", draw, caption)


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
