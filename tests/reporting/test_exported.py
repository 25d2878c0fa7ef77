"""The exported files as a report shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kdedge.artifacts.ship import file_to_ship
from kdedge.reporting.exported import compared_files, exported_blocks
from kdedge.reporting.page import provenance_blocks
from kdedge.reporting.run_records import RunRecords, run_records
from kdedge.runs.folder import RunFolder

MakeRun = Callable[..., RunFolder]

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
def records(make_run: MakeRun) -> RunRecords:
    return run_records(make_run(["cat", "dog"], only="artifact"))


def blocks(records: RunRecords) -> list[Any]:
    return [block for block in exported_blocks(records) if block.title]


def with_search(records: RunRecords, found: dict[str, Any]) -> RunRecords:
    *others, last = records.artifact.files
    built_with = {**last.built_with, "search": found}
    files = (*others, replace(last, built_with=built_with))
    return replace(records, artifact=replace(records.artifact, files=files))


def test_steps_and_the_sensitivity_of_each_layer_are_shown(records: RunRecords) -> None:
    _, steps, layers = blocks(with_search(records, search(a=-0.1, b=None, c=0.5)))
    assert "Ended after 61 s: the target was reached. Layers in float: c." in steps.caption
    assert [list(row) for row in steps.rows] == [
        ["ranges max", "97.27", "97.50", "3.21", "yes", "4"],
        ["ranges mse", "97.27", "97.50", "3.21", "no", "4"],
    ]
    assert layers.rows == [["c", "0.50"], ["a", "-0.10"]]


def test_the_file_to_ship_has_the_time_of_bench(make_run: MakeRun) -> None:
    artifact, speed = (getattr(run_records(make_run()), name) for name in ("artifact", "speed"))
    plain, int8 = (replace(file, gate="passed") for file in artifact.files)
    artifact = replace(artifact, files=(plain, int8))
    other = replace(speed.rows[1], model="model.onnx", n_bytes=1)  # of another artifact
    rows = [replace(speed.rows[0], model="model.onnx", n_bytes=plain.n_bytes)]
    speed = replace(speed, rows=(other, *rows, *speed.rows[1:]))
    assert file_to_ship(artifact, speed) == (plain, rows[0].without_file(1), "A processor", None)
    assert file_to_ship(artifact, None) == (plain, None, "", None)
    for_gpus = replace(artifact, files=(replace(int8, device="gpu"), int8))
    assert file_to_ship(for_gpus, None) == (int8, None, "", None)


# What made a run


def test_a_files_row_has_each_figure_in_its_column(make_run: MakeRun) -> None:
    artifact = run_records(make_run(only="artifact")).artifact
    plain, int8 = artifact.files
    assert int8.parity is not None
    parity = replace(
        int8.parity,
        n_labeled=40,
        accuracy_percent=70.0,
        reference_accuracy_percent=72.5,
        accuracy_drop=2.5,
    )
    table = compared_files(replace(artifact, files=(plain, replace(int8, parity=parity))))
    figures = ["MB", "agreement %", "accuracy %", "drop", "distance"]
    assert table.header[4:] == figures
    distance = f"{parity.mean_softmax_distance:.4f}"
    assert table.rows == [
        [*("model.onnx", "fp32", plain.device, "not measured", "2.0"), *["-"] * 4],
        [
            *("i8.onnx", "int8", int8.device, "not measured", "1.0"),
            *("95.00", "70.00", "2.50", distance),
        ],
    ]
    assert "Measured at export on 40 images (" in table.caption
    assert (
        "Gates: agreement of int8 at least 98 %, drop at most 1 points, in whole images."
        in table.caption
    )


def facts(run: RunFolder) -> dict[str, str]:
    block: Any = provenance_blocks(run_records(run))[0]
    return dict(block.rows)


def test_a_backbone_is_that_of_the_runs_own_part_of_the_recipe(make_run: MakeRun) -> None:
    run = make_run(only="")
    run.recipe.write_text(
        run.recipe.read_text() + "teacher: {backbone: ViT-L-14, method: promptsrc}\n"
    )
    assert facts(run)["backbone"].startswith("ViT-B-16")
    record = json.loads(run.provenance.read_text())
    run.provenance.write_text(json.dumps({**record, "role": "teacher"}))
    teacher = RunFolder.open(run.path)
    assert facts(teacher)["backbone"].startswith("ViT-L-14")
    # Only a student is exported by itself when nothing is said
    assert "exported files" not in run_records(teacher).missing
