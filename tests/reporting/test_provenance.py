"""What made a run, as its report has it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kdedge.reporting.exported import files_table
from kdedge.reporting.provenance import provenance_blocks
from kdedge.reporting.records import gather
from kdedge.runs.folder import RunFolder


def test_a_files_row_has_each_figure_in_its_column(make_run: Callable[..., RunFolder]) -> None:
    artifact = gather(make_run(only="artifact")).artifact
    assert artifact is not None
    plain, int8 = artifact.files
    assert int8.parity is not None
    parity = replace(
        int8.parity,
        n_labeled=40,
        accuracy_percent=70.0,
        reference_accuracy_percent=72.5,
        accuracy_drop=2.5,
    )
    table = files_table(replace(artifact, files=(plain, replace(int8, parity=parity))))
    figures = ["MB", "agreement %", "accuracy %", "drop", "distance"]
    assert table.header[4:] == ["runtime", *figures, "images"]
    distance = f"{parity.mean_softmax_distance:.4f}"
    assert table.rows == [
        [*("model.onnx", "fp32", plain.device, "not measured", "-", "2.0"), *["-"] * 5],
        [
            *("i8.onnx", "int8", int8.device, "not measured", parity.runtime, "1.0"),
            *("95.00", "70.00", "2.50", distance, "40"),
        ],
    ]
    assert "Gates: agreement of int8 at least 98 %, drop at most 1 points." in table.caption


def facts(run: RunFolder) -> dict[str, str]:
    block: Any = provenance_blocks(gather(run))[0]
    return dict(block.rows)


def test_a_backbone_is_that_of_the_runs_own_part_of_the_recipe(
    make_run: Callable[..., RunFolder],
) -> None:
    run = make_run(only="")
    run.recipe.write_text(
        run.recipe.read_text() + "teacher: {backbone: ViT-L-14, method: promptsrc}\n"
    )
    assert facts(run)["backbone"].startswith("ViT-B-16")
    record = json.loads(run.provenance.read_text())
    run.provenance.write_text(json.dumps({**record, "kind": "teacher"}))
    teacher = RunFolder.open(run.path)
    assert facts(teacher)["backbone"].startswith("ViT-L-14")
    # Only a student is exported by itself when nothing is said
    assert "exported files" not in gather(teacher).missing
