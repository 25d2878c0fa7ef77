"""Speed in a report: the tables of `kdedge bench`, and plots of accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kdedge.benchmarking.tables import machine_text, make_tables, notes
from kdedge.records.speed import NamedRow, SpeedResult, accuracies, named_rows
from kdedge.reporting.blocks import Block, Note, Plot
from kdedge.reporting.figures import CostPoint, accuracy_against_cost


def speed_blocks(result: SpeedResult, name: str) -> list[Block]:
    """Makes the plots and tables of one call of `kdedge bench`, and remarks on them.

    Args:
        result: the measurement.
        name: prefix of the plots' names.
    """
    measured = f"{machine_text(result)}; {result.command}, {result.measured_at}."
    tables = make_tables(result)
    plots = front_plots(named_rows(result), name)
    return [*plots, *tables, Note([measured, *notes(result)])]


def front_plots(rows: Sequence[NamedRow], name: str) -> list[Plot]:
    """Makes a plot per set of test images; empty if no accuracy is known.

    Args:
        rows: rows measured on one machine; their smallest batch is shown.
        name: name of the first plot.
    """
    measurements = [time for _, row in rows for time in row.measurements]
    batch = min((time.batch for time in measurements if time.inputs != "image file"), default=1)
    plots: list[Plot] = []
    for group in accuracies(rows):
        key, accuracy_name = "harmonic_mean", "harmonic mean of base and novel"
        if any(entry.harmonic_mean is None for _, entry in group):  # files have only `all`
            key, accuracy_name = "all", "accuracy over all names"
        points = []
        for label, entry in group:
            row = dict(rows)[label]
            time = row.without_file(batch)
            if time is not None and time.doubt is None:
                kind = "engine" if row.model.endswith(".engine") else "file"
                kind = "model" if row.n_bytes is None else kind
                points.append(CostPoint(label, kind, time.p50_ms, getattr(entry, key)))
        if not points:
            continue
        sources = "; ".join(dict.fromkeys(entry.source for _, entry in group))
        caption = (
            f"All accuracies are on the same {group[0][1].n_images:,} images ({sources}). The"
            " dashed line is the Pareto front: no other model is both faster and more accurate."
        )
        if len(points) < len(rows):
            caption += (
                f" {len(rows) - len(points)} of {len(rows)} models are left out: their accuracy on"
                " these images is unknown, or their times are missing or in doubt."
            )
        draw = partial(
            accuracy_against_cost,
            points,
            accuracy_name=f"{accuracy_name}, %",
            cost_name=f"ms per call at batch {batch}, median (log scale)",
        )
        own_name = f"{name}-{len(plots) + 1}" if plots else name
        plots.append(Plot(own_name, f"Accuracy against latency: {accuracy_name}", draw, caption))
    return plots
