"""A target of a package from outside: every command knows it, and no file of kdedge names it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdedge

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def project(
    trained_project: Path, copy_of: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A trained project of this module's own."""
    return copy_of(trained_project, tmp_path_factory.mktemp("toy") / "project")


@pytest.fixture(scope="module")
def toy(install: Callable[..., Any], project: Path) -> Any:
    """The toy package, whose commands run in the project."""
    points = {"kdedge.targets": {"toy": "kdedge_toy.numpy_target"}}
    return install({"kdedge_toy": Path(__file__).with_name("kdedge_toy")}, points, project)


@pytest.fixture(scope="module")
def run(toy: Any) -> Run:
    """Runs a command in the project, with the toy package installed."""
    return lambda *arguments: toy.run(shlex.join(arguments))[0]


@pytest.fixture(scope="module")
def exported(run: Run, project: Path) -> Path:
    """The artifact of an export with the toy target."""
    done = run("export", "tiny/02", "--toy", "--output", "artifact")
    assert done.code == 0, done.err
    assert "model.npz" in done.out
    return project / "artifact"


def test_export_writes_its_file_and_its_own_logits_decide_its_gate(exported: Path) -> None:
    files = {
        file["name"]: file for file in json.loads((exported / "artifact.json").read_text())["files"]
    }
    assert set(files) == {"model.onnx", "model.npz"}
    toy = files["model.npz"]
    assert (toy["target"], toy["precision"], toy["device"]) == ("toy", "fp32", "cpu")
    assert toy["gate"] == "passed"
    assert toy["parity"]["agreement_percent"] == 100
    assert toy["parity"]["max_softmax_distance"] < 1e-4
    assert toy["parity"]["runtime"].startswith("toy numpy ")
    assert toy["built_with"]["tool"] == "toy"


def test_predict_runs_it_by_its_backends_name_and_gives_the_onnx_files_scores(
    run: Run, exported: Path
) -> None:
    lines = {}
    for backend in ("toy", "onnxruntime"):
        options = ("--backend", backend, "--format", "jsonl", "--top", "4")
        done = run("predict", str(exported), "test", *options)
        assert done.code == 0, done.err
        lines[backend] = [json.loads(line) for line in done.out.splitlines()]
    assert len(lines["toy"]) == 20
    for toy, onnx in zip(lines["toy"], lines["onnxruntime"], strict=True):
        assert toy["image"] == onnx["image"]
        found = {entry["class"]: entry["score_percent"] for entry in toy["top"]}
        expected = {entry["class"]: entry["score_percent"] for entry in onnx["top"]}
        assert found == pytest.approx(expected, abs=1e-2)


def test_bench_has_a_row_of_it(
    exported: Path, kdedge: Run, quick_machine: None, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(toy.folder), *sys.path])
    options = ("--batch", "1", "--seconds", "0.01", "--calls", "3", "--format", "json")
    done = kdedge("bench", str(exported), *options)
    assert done.code == 0, done.err
    rows = {row["model"]: row for row in json.loads(done.out)["rows"]}
    assert rows["model.npz"]["runtime"].startswith("toy numpy ")
    assert rows["model.npz"]["measurements"]


def test_the_fastest_file_is_looked_for_among_its_files_too(
    project: Path, toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr(sys, "path", [str(toy.folder), *sys.path])
    for package in ("executorch.runtime", "litert_torch", "openvino"):  # quicker without
        monkeypatch.setitem(sys.modules, package, None)
    artifact = kdedge.export(
        "tiny/02",
        cpu=True,
        output=tmp_path / "artifact",
        overrides={"data.unlabeled": None},
    )
    choice = kdedge.cpu_choice(artifact)
    assert {one.file for one in choice.candidates} == {"model.onnx", "model.npz"}
    for label in ("ONNX", "LiteRT", "ExecuTorch"):
        assert "no unlabeled images" in choice.not_tried[f"{label} int8"]


def test_doctor_schema_and_help_know_it(run: Run) -> None:
    done = run("doctor")
    assert done.code == 0, done.err
    (line,) = (line for line in done.out.splitlines() if line.startswith("toy_engine"))
    assert " ".join(line.split()) == "toy_engine missing toy models pip install toy-engine"
    done = run("schema", "--json")
    assert json.loads(done.out)["targets"]["toy"]["flag"] == "--toy"
    help_text = run("export", "--help-all").out
    assert "--toy" in help_text
    assert "The weights as NumPy arrays." in help_text
    assert "tensorrt-rtx,toy." in "".join(run("predict", "--help").out.split())
