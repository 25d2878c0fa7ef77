"""The plots of a report; `plots.render` draws them in the page's style."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from kdedge.records.evaluation import EvalDetails
from kdedge.records.speed import pareto_front
from kdedge.reporting.plots import FIRST, MUTED, SECOND, SHARES, THIRD
from kdedge.reporting.run_records import TrainingLog

# With more classes, names are left out, since they would be too small to read
MAX_NAMED_CLASSES = 40

# Largest number of rows of a drawn matrix; in longer lists, neighboring classes share a row
MAX_CELLS = 200

_MAX_LABELS = 16  # numbered points of a plot
_NEAR_PX = 14.0  # points that are closer share one label
_WIDTH = 4.4  # inches: 422 CSS pixels, so that letters can be read on a phone


@dataclass(frozen=True)
class CostPoint:
    """A model's cost and accuracy.

    Attributes:
        label: the model's name.
        kind: `model`, `file` or `engine`.
        cost: median latency in ms.
        accuracy: percent.
    """

    label: str
    kind: str
    cost: float
    accuracy: float


def training_curves(log: TrainingLog) -> Figure:
    """Plots the loss, the agreement with the teacher (if logged), and the learning rate."""
    series = [("loss", "loss"), ("lr", "learning rate")]
    if any("teacher_agreement_percent" in step for step in log.steps):
        series.insert(1, ("teacher_agreement_percent", "agreement\nwith teacher, %"))
    figure = Figure(figsize=(_WIDTH, 1.1 + 1.25 * len(series)))
    panels = figure.subplots(len(series), sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(panels, series, strict=True):
        x, y = _series(log.steps, key)
        is_noisy = key != "lr" and bool(log.epochs)
        color = MUTED if is_noisy else FIRST
        axes.plot(x, y, color=color, linewidth=0.8 if is_noisy else 1.6, label="steps")
        if is_noisy:
            means = _series(log.epochs, key) if key == "loss" else _epoch_means(log, key)
            axes.plot(*means, color=FIRST, marker="o", markersize=3.5, label="epochs")
        axes.set_ylabel(label)
    if log.epochs:
        panels[0].legend(loc="upper right", ncols=2)
    panels[-1].set_xlabel("step")
    return figure


def _series(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key in log lines; values that are not finite are gaps (NaN)."""
    points = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in points], [np.nan if y is None else float(y) for _, y in points]


def _epoch_means(log: TrainingLog, key: str) -> tuple[list[int], list[float]]:
    """Last step of each epoch, and the mean of a key over the epoch's logged steps."""
    ends = [line["step"] for line in log.epochs]
    x, y = _series(log.steps, key)
    places = np.searchsorted(ends, x)
    values = np.asarray(y)
    means = [values[places == i] for i in range(len(ends))]
    return ends, [float(np.nanmean(part)) if np.isfinite(part).any() else np.nan for part in means]


def classes_per_cell(n_classes: int) -> int:
    """Number of neighboring classes that share a row of a drawn matrix."""
    return -(-n_classes // MAX_CELLS)


def confusion(details: EvalDetails) -> Figure:
    """Plots the share of each class's images by predicted class, on a square-root scale."""
    n_classes = len(details.class_names)
    is_named = n_classes <= MAX_NAMED_CLASSES
    step = classes_per_cell(n_classes)
    n_cells = -(-n_classes // step)
    matrix = np.zeros((n_cells, n_cells), dtype=np.int64)
    for label, predicted, n in details.confusion:
        matrix[label // step, predicted // step] += n
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)

    side = max(_WIDTH, 2.6 + 0.17 * n_classes) if is_named else _WIDTH
    figure = Figure(figsize=(side, side * 0.86))
    axes = figure.subplots()
    extent = (0.5, n_classes + 0.5, n_classes + 0.5, 0.5)  # classes from 1
    image = axes.imshow(
        shares,
        norm=PowerNorm(0.5, vmin=0, vmax=100),
        cmap=SHARES,
        interpolation="none",
        extent=extent,
    )
    axes.grid(visible=False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("class of the image")
    if is_named:
        names = [_short(name, 20) for name in details.class_names]
        axes.set_xticks(range(1, n_classes + 1), names, rotation=90)
        axes.set_yticks(range(1, n_classes + 1), names)
    bar = figure.colorbar(image, shrink=0.85, ticks=[0, 1, 5, 10, 25, 50, 75, 100])
    bar.set_label("% of the class's images")
    return figure


def calibration(models: Mapping[str, EvalDetails]) -> Figure:
    """Plots accuracy by confidence, and the share of images by confidence.

    Args:
        models: details by label, the run's own model first.
    """
    figure = Figure(figsize=(_WIDTH, 4.4))
    curve, share = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    curve.plot([0, 100], [0, 100], color=MUTED, linestyle="--", label="as sure as right")
    styles = zip((FIRST, SECOND, THIRD), ("o", "s", "^"), strict=True)
    for (label, details), (color, marker) in zip(models.items(), styles, strict=False):
        x = [entry.confidence_percent for entry in details.bins]
        n_images = [100 * entry.n_images / details.n_images for entry in details.bins]
        accuracies = [entry.accuracy_percent for entry in details.bins]
        sizes = [8 + 6 * min(n, 15) for n in n_images]
        curve.plot(x, accuracies, color=color, linewidth=0.9)
        curve.scatter(
            x, accuracies, s=sizes, color=color, marker=marker, label=label, clip_on=False
        )
        share.plot(x, n_images, color=color, marker=marker, markersize=3.5)
    curve.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy, %")
    curve.legend(loc="upper left")
    share.set(ylim=(0, None), ylabel="images, %", xlabel="confidence, %")
    return figure


def accuracy_against_cost(
    points: Sequence[CostPoint], *, accuracy_name: str, cost_name: str
) -> Figure:
    """Plots one or more models by cost and accuracy, with their Pareto front."""
    front = [points[i] for i in pareto_front([(point.cost, point.accuracy) for point in points])]
    named = points if len(points) <= _MAX_LABELS else front

    figure = Figure(figsize=(_WIDTH + 0.9, max(3.4, 0.6 + 0.24 * len(named))))
    axes = figure.subplots()
    axes.plot(
        [point.cost for point in front],
        [point.accuracy for point in front],
        color=MUTED,
        linestyle="--",
        linewidth=1.2,
        drawstyle="steps-post",
        label="Pareto front",
    )
    styles = {
        "model": ("in PyTorch", FIRST, "o"),
        "file": ("exported file", SECOND, "s"),
        "engine": ("engine", THIRD, "^"),
    }
    for kind, (label, color, marker) in styles.items():
        same_kind = [point for point in points if point.kind == kind]
        x, y = [point.cost for point in same_kind], [point.accuracy for point in same_kind]
        if same_kind:
            axes.scatter(x, y, s=42, color=color, marker=marker, label=label, zorder=3)
    # Wide enough for a tick, even for a single point
    costs = [point.cost for point in points]
    limits = (min(costs) / 1.6, max(costs) * 1.6)
    axes.set(xlabel=cost_name, ylabel=accuracy_name, xscale="log", xlim=limits)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=4)
    places = [(point.cost, point.accuracy) for point in named]
    pixels = axes.transData.transform(places)
    numbers: dict[int, list[str]] = {}  # point -> numbers of the points that share its label
    for i, pixel in enumerate(pixels):
        first = next(k for k in (*numbers, i) if math.dist(pixels[k], pixel) < _NEAR_PX)
        numbers.setdefault(first, []).append(str(i + 1))
    for i, texts in numbers.items():
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5}
        axes.annotate(", ".join(texts), places[i], (0, 6), **style)
    names = "\n".join(f"{i}  {_short(point.label, 30)}" for i, point in enumerate(named, 1))
    axes.text(1.03, 1, names, transform=axes.transAxes, va="top", fontsize=8.5, linespacing=1.6)
    return figure


def _short(name: str, most: int) -> str:
    """Shortens a name in its middle, since names in a list often begin alike."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most // 2 - 1) :]}"
