"""`kdedge report` on a trained and exported project."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def test_the_newest_run_is_reported_into_a_new_folder(kdedge, exported) -> None:
    done = kdedge("report").succeeds()
    page = Path("runs/tiny/02/report/01/index.html")
    assert done.out.startswith(f"Wrote {page}\nThe student is ")
    assert done.out.endswith("\nNext: kdedge show runs/tiny/02\n")  # not to be used
    text = page.read_text(encoding="utf-8")
    for name in ("school bus", "model.int8.onnx", "Calibration", "Accuracy by class"):
        assert name in text
    assert "data:image/jpeg" in text
    before = page.read_bytes()
    again = kdedge("report", "tiny", "--json")
    assert (again.code, page.read_bytes()) == (0, before)
    record = json.loads(again.out)
    assert record["runs"] == ["runs/tiny/02"]
    assert record["page"] == "runs/tiny/02/report/02/index.html"


def test_runs_are_reported_once_each_into_the_folder_that_is_named(kdedge, trained) -> None:
    done = kdedge("report", "tiny/02", "tiny/01", "runs/tiny/02", "--output", "out", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["runs"] == ["runs/tiny/02", "runs/tiny/01"]
    assert not Path("runs/tiny/02/report").exists()
    kdedge("report", "--output", "out").fails(2, "out exists, and nothing is overwritten")


def test_eval_adds_what_a_run_lacks(kdedge, trained) -> None:
    details, evaluation = (Path(f"runs/tiny/02/{name}.json") for name in ("eval_details", "eval"))
    kept = json.loads(details.read_text()), json.loads(evaluation.read_text())
    details.unlink()
    assert kdedge("report").out.endswith("\nNext: kdedge eval runs/tiny/02\n")
    assert kdedge("eval", "--set", "data.max_bad_images=0").code == 0
    assert not details.exists()
    assert f"Wrote {details}\n" in kdedge("eval").err
    assert json.loads(details.read_text()) == {"student": kept[0]["student"]}
    evaluation.unlink()
    assert f"Wrote {evaluation}\n" in kdedge("eval").err
    assert json.loads(evaluation.read_text()) == {"student": kept[1]["student"]}
    assert "Wrote" not in kdedge("eval").err


def test_a_run_keeps_images_with_its_answers_and_its_teachers(trained) -> None:
    details = json.loads(Path("runs/tiny/02/eval_details.json").read_text())
    assert [name for name, found in details.items() if found["samples"]] == ["student"]
    samples = details["student"]["samples"]
    assert list(samples) == ["right", "wrong", "most unsure"]
    keys = [sample["image"] for group in samples.values() for sample in group]
    assert 0 < len(keys) == len(set(keys))
    for kind, group in samples.items():
        for sample in group:
            assert sample["image"].startswith(sample["label"])  # the class's folder
            assert sample["teacher"] in details["student"]["class_names"]
            if kind != "most unsure":
                assert (sample["top"][0][0] == sample["label"]) == (kind == "right")
    teacher = json.loads(Path("runs/tiny/01/eval_details.json").read_text())["teacher"]
    assert {s["teacher"] for group in teacher["samples"].values() for s in group} == {None}


def test_eval_adds_no_details_of_another_test_set(kdedge, trained) -> None:
    details = Path("runs/tiny/02/eval_details.json")
    details.unlink()
    Path("test/cat/0.jpg").unlink()
    assert (kdedge("eval").code, details.exists()) == (0, False)


def test_a_report_loads_no_model(trained, tmp_path) -> None:
    import subprocess

    code = (
        "import sys; from kdedge.cli.main import run; code = run(['report', '--output', 'r']);"
        " print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=trained
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
