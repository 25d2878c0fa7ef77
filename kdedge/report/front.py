"""Accuracy against latency: the models that no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.report.blocks import Block, Plot, Table
from kdedge.report.figures import SpeedPoint, accuracy_against_latency
from kdedge.report.numbers import figure, percent
from kdedge.report.pareto import pareto_front
from kdedge.report.speed import NamedRow, is_model_alone, model_alone
from kdedge.speed_results import SpeedRow


def front_blocks(rows: Sequence[NamedRow], measured: str, name: str) -> list[Block]:
    """Makes a plot and a table at the smallest batch; none if no accuracy is known.

    Args:
        rows: measured on one machine.
        measured: the machine and the measurement, for the caption.
        name: of the PNG file.
    """
    measurements = [found for _, row in rows for found in row.measurements]
    batch = min((found.batch for found in measurements if is_model_alone(found)), default=1)
    key, accuracy_name = _accuracy_key(rows)
    points, sources = [], {}
    for label, row in rows:
        found, known = model_alone(row, batch), row.accuracy
        accuracy = None if known is None else getattr(known, key)
        if found is not None and found.doubt is None and known is not None and accuracy is not None:
            points.append(SpeedPoint(label, _kind(row), found.p50_ms, accuracy))
            sources[label] = known.source
    if not points:
        return []
    time_name = f"ms a call at batch {batch}, median"
    caption = "The dashed line joins the models that no other beats in both."
    if len(points) < len(rows):
        caption += (
            f" {len(rows) - len(points)} of {len(rows)} models are left out: their accuracy is"
            " unknown, or their times are missing or in doubt."
        )
    draw = accuracy_against_latency(
        points, accuracy_name=f"{accuracy_name}, %", time_name=f"{time_name} (log scale)"
    )
    title = f"Accuracy against latency: {accuracy_name}"
    front = set(pareto_front([(point.ms, point.accuracy) for point in points]))
    cells = [
        [
            *(point.label, sources[point.label], "yes" if i in front else ""),
            *(figure(point.ms), percent(point.accuracy)),
        ]
        for i, point in sorted(enumerate(points), key=lambda entry: entry[1].ms)
    ]
    header = ["model", "accuracy from", "on the front", "ms", "%"]
    table_caption = f"Times: {time_name}. Accuracies: {accuracy_name}, percent."
    return [
        Plot(name, title, draw, f"{caption} {measured}"),
        Table("The same in figures", header, cells, table_caption, n_text=3),
    ]


def _accuracy_key(rows: Sequence[NamedRow]) -> tuple[str, str]:
    """The accuracy that all models have; exported files have only the one over all names."""
    known = [row.accuracy for _, row in rows if row.accuracy is not None]
    if all(accuracy.harmonic_mean is not None for accuracy in known):
        return "harmonic_mean", "harmonic mean of base and novel"
    return "all", "accuracy over all names"


def _kind(row: SpeedRow) -> str:
    if row.n_bytes is None:
        return "model"
    return "engine" if row.model.endswith(".engine") else "file"
