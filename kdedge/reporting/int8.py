"""The search of an INT8 file: what each step gave, and what each layer costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from kdedge.reporting.blocks import Block, Facts, Plot, Table
from kdedge.reporting.plots import Draw, Theme
from kdedge.runtime.artifact import Artifact


def search_blocks(artifact: Artifact, name: str) -> list[Block]:
    """Steps, layers and a plot of the search; empty where no INT8 file was searched.

    Args:
        artifact: the export.
        name: name of the plot's PNG file.
    """
    found = [file.built_with["search"] for file in artifact.files if "search" in file.built_with]
    if not found:
        return []
    search = found[0]
    steps = [
        [step["step"], f"{step['agreement_percent']:.2f}", f"{step['expected_percent']:.2f}",
         f"{step['logit_error_percent']:.2f}", "yes" if step["kept"] else "no",
         f"{step['at_seconds']:.0f}"]
        for step in search["steps"]
    ]  # fmt: skip
    facts = [
        ("held-out images", f"{search['n_held_out']:,}"),
        ("target", f"{search['target_agreement_percent']:g} % agreement to expect"),
        ("ended", f"{search['ended']}, after {search['seconds']:.0f} s"),
        ("layers in float", ", ".join(search["in_float"]) or "none"),
    ]
    header = ["step", "agreement", "to expect", "error of logits", "kept", "at second"]
    what = "Each step on the held-out images, in percent."
    layers = search["layers"]
    measured = {key: value["sensitivity"] for key, value in layers.items()}
    own = {key: value["error_percent"] for key, value in layers.items()}
    is_measured = any(value is not None for value in measured.values())
    values = measured if is_measured else own
    told = (
        "Percentage points of the logits' error that each layer in float takes away."
        if is_measured
        else "Error of each layer's output by itself, percent of the output."
    )
    return [
        Facts(facts, is_wide=False),
        Table("Search", header, steps, what),
        Plot(name, "Sensitivity by layer", layer_bars(values, "percent"), told),
    ]


def layer_bars(values: Mapping[str, float | None], label: str) -> Draw:
    """Plots a value for each layer, in the order of the model.

    Args:
        values: by layer; None for layers without a value.
        label: the values' unit.
    """
    shown: dict[str, Any] = {name: value for name, value in values.items() if value is not None}

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(7.0, 1.1 + 0.16 * len(shown)))
        axes = figure.subplots()
        axes.barh(range(len(shown)), list(shown.values()), color=theme.first)
        axes.set_yticks(range(len(shown)), list(shown), fontsize="small")
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel(label)
        return figure

    return draw
