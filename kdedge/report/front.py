"""Accuracy against latency: which models nothing beats in both."""

from __future__ import annotations

from collections.abc import Sequence

from kdedge.report.blocks import Block, Plot, Table
from kdedge.report.figures import SpeedPoint, accuracy_against_latency
from kdedge.report.numbers import figure, percent
from kdedge.report.pareto import pareto_front
from kdedge.report.speed import NamedRow, is_plain, plain_measurement
from kdedge.speed_results import SpeedRow


def front_blocks(rows: Sequence[NamedRow], measured: str, name: str) -> list[Block]:
    """A plot and its figures, at the smallest batch; nothing where no accuracy is known.

    Args:
        rows: measured on one machine.
        measured: on which and how, for the caption.
        name: of the PNG file.
    """
    batch = min((m.batch for n in rows for m in n.row.measurements if is_plain(m)), default=1)
    key, accuracy_name = _accuracy_key(rows)
    points = []
    for named in rows:
        found = plain_measurement(named.row, batch)
        accuracy = None if named.row.accuracy is None else getattr(named.row.accuracy, key)
        if found is not None and found.p50_ms > 0 and accuracy is not None:
            points.append(SpeedPoint(named.label, _kind(named.row), found.p50_ms, accuracy))
    if not points:
        return []
    time_name = f"ms a call at batch {batch}, median"
    n_left_out = len(rows) - len(points)
    left_out = (
        f" {n_left_out} of {len(rows)} models are left out: no accuracy of theirs is known, or they"
        " could not be timed."
        if n_left_out
        else ""
    )
    caption = f"The dashed line joins the models that no other beats in both.{left_out} {measured}"
    draw = accuracy_against_latency(
        points, accuracy_name=f"{accuracy_name}, %", time_name=f"{time_name} (log scale)"
    )
    plot = Plot(name, f"Accuracy against latency: {accuracy_name}", draw, caption)
    return [plot, _table(points, accuracy_name, time_name, rows)]


def _accuracy_key(rows: Sequence[NamedRow]) -> tuple[str, str]:
    """The accuracy that all models have: files have one, over all names."""
    known = [named.row.accuracy for named in rows if named.row.accuracy is not None]
    if all(accuracy.harmonic_mean is not None for accuracy in known):
        return "harmonic_mean", "harmonic mean of base and novel"
    return "all", "accuracy over all names"


def _kind(row: SpeedRow) -> str:
    if row.n_bytes is None:
        return "model"
    return "engine" if row.model.endswith(".engine") else "file"


def _table(
    points: Sequence[SpeedPoint], accuracy_name: str, time_name: str, rows: Sequence[NamedRow]
) -> Table:
    front = set(pareto_front([(point.ms, point.accuracy) for point in points]))
    sources = {named.label: named.row.accuracy.source for named in rows if named.row.accuracy}
    order = sorted(range(len(points)), key=lambda i: points[i].ms)
    cells = [
        [
            *(points[i].label, sources[points[i].label], "yes" if i in front else ""),
            *(figure(points[i].ms), percent(points[i].accuracy)),
        ]
        for i in order
    ]
    header = ["model", "accuracy from", "on the front", "ms", "%"]
    caption = f"Times: {time_name}. Accuracies: {accuracy_name}, percent."
    return Table("The same in figures", header, cells, caption, n_text=3)
