"""From new images of a device to a new student, and to the comparison with the old one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
VIEWS = ("--set", "student.views=1", "--set", "teacher.run=runs/tiny/01")


@pytest.mark.usefixtures("exported")
def test_new_images_are_distilled_from_with_the_teacher_run_on_them_alone_and_compared(
    kdedge: Run, draw_picture: Callable[..., None]
) -> None:
    pytest.importorskip("onnxruntime")
    filled = kdedge("teach", "r.yaml", *VIEWS, "--store")
    assert filled.code == 0, filled.err

    for label in range(4):
        draw_picture(Path(f"pool/new-1/{label}.jpg"), label=label, number=50, side_px=64)
    distilled = kdedge("distill", "r.yaml", *VIEWS)
    assert distilled.code == 0, distilled.err
    taken = r"^Features of 40 of 44 images are taken from runs/\.cache/teacher_store/"
    assert re.search(taken, distilled.err, re.MULTILINE)
    run = Path("runs/tiny/03")
    hashes = json.loads((run / "provenance.json").read_text())["hashes"]
    assert (Path("runs/.cache/teacher_store") / hashes["teacher_store"][:16]).is_dir()

    exported = kdedge("export", str(run), "--onnx")
    assert exported.code == 0, exported.err

    before = {path: path.read_bytes() for path in Path("runs/tiny/02/artifacts").rglob("*.json")}
    arguments = ("compare", "runs/tiny/02", str(run), "test", "--labels", "--json")
    compared = kdedge(*arguments)
    assert compared.code == 0, compared.err
    found = json.loads(compared.out)
    assert found["old"]["file"] == "runs/tiny/02/artifacts/01/model.onnx"
    assert found["new"]["file"] == "runs/tiny/03/artifacts/01/model.onnx"
    assert (found["n_images"], found["labeled"]["n_labeled"]) == (20, 20)
    assert found["labeled"]["verdict"] in ("better", "worse", "no difference shown")
    # What the run's own evaluation says of the same images
    evaluation = json.loads((run / "eval.json").read_text())["student"]
    assert found["labeled"]["new_accuracy_percent"] == evaluation["all"]

    unlabeled = kdedge("compare", "runs/tiny/02", str(run), "pool/new-1")
    assert unlabeled.code == 0, unlabeled.err
    assert "4 images" in unlabeled.out
    assert {path: path.read_bytes() for path in before} == before
