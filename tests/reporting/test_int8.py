"""The search of an INT8 file as a report shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdedge.reporting.blocks import Facts, Plot, Table
from kdedge.reporting.int8 import search_blocks
from kdedge.reporting.plots import LIGHT
from kdedge.reporting.records import gather
from kdedge.runs.folder import RunFolder
from kdedge.runtime.artifact import Artifact

STEP = {
    "agreement_percent": 97.27,
    "expected_percent": 97.5,
    "logit_error_percent": 3.21,
    "at_seconds": 4.4,
}


def search(**sensitivity: float | None) -> dict[str, Any]:
    layers = {
        name: {"precision": "int8", "range": "max", "error_percent": 2.0 + i, "sensitivity": value}
        for i, (name, value) in enumerate(sensitivity.items())
    }
    return {
        "n_held_out": 256,
        "target_agreement_percent": 99.0,
        "ended": "the target was reached",
        "seconds": 61.2,
        "steps": [
            {"step": "ranges max", **STEP, "kept": True},
            {"step": "ranges mse", **STEP, "kept": False},
        ],
        "layers": layers,
        "in_float": ["c"],
    }


@pytest.fixture
def artifact(make_run: Callable[..., RunFolder]) -> Artifact:
    found = gather(make_run(["cat", "dog"], only="artifact")).artifact
    assert found is not None
    return found


def with_search(artifact: Artifact, found: dict[str, Any]) -> Artifact:
    *others, last = artifact.files
    built_with = {**last.built_with, "search": found}
    return replace(artifact, files=(*others, replace(last, built_with=built_with)))


def test_an_artifact_without_a_search_has_no_section(artifact: Artifact) -> None:
    assert search_blocks(artifact, "int8") == []


def test_steps_facts_and_the_sensitivity_of_each_layer_are_shown(artifact: Artifact) -> None:
    found = with_search(artifact, search(a=0.5, b=None, c=-0.1))
    facts, table, plot = search_blocks(found, "int8")
    assert isinstance(facts, Facts)
    assert isinstance(table, Table)
    assert isinstance(plot, Plot)
    told = dict(facts.rows)
    assert told["ended"] == "the target was reached, after 61 s"
    assert told["layers in float"] == "c"
    assert [list(row) for row in table.rows] == [
        ["ranges max", "97.27", "97.50", "3.21", "yes", "4"],
        ["ranges mse", "97.27", "97.50", "3.21", "no", "4"],
    ]
    axes = plot.draw(LIGHT).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "c"]
    assert [bar.get_width() for bar in axes.patches] == [0.5, -0.1]


def test_without_sensitivities_the_layers_own_errors_are_drawn(artifact: Artifact) -> None:
    *_, plot = search_blocks(with_search(artifact, search(a=None, b=None)), "int8")
    assert isinstance(plot, Plot)
    assert [bar.get_width() for bar in plot.draw(LIGHT).axes[0].patches] == [2.0, 3.0]
    assert plot.caption.startswith("Error of each layer's output")
