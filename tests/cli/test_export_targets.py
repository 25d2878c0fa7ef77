"""`kdedge export --openvino`, `--executorch`, `--litert`: from a trained project to the report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdedge as api
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.cpu_choice import CPU_CHOICE

pytestmark = pytest.mark.usefixtures("exported")

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

ARTIFACT = Path("runs/tiny/02/artifacts/01")


Kdedge = Callable[..., Any]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


OPENVINO = {"model.xml": "fp32", "model.fp16.xml": "fp16", "model.int8.xml": "int8"}
# ExecuTorch's lowering takes a minute of computing, and five on a busy machine
SLOW = (pytest.mark.slow, pytest.mark.timeout(900))


@pytest.mark.parametrize(
    ("target", "package", "names"),
    [
        ("openvino", "openvino", OPENVINO),
        pytest.param(
            *("executorch", "executorch", {"model.pte": "fp32", "model.int8.pte": "int8"}),
            marks=SLOW,
        ),
        ("litert", "litert_torch", {"model.tflite": "fp32", "model.int8.tflite": "int8"}),
    ],
)
def test_a_run_gets_files_that_are_compared_predicted_measured_and_reported(
    trained: Path,
    kdedge: Kdedge,
    predict: Callable[..., list[dict[str, Any]]],
    target: str,
    package: str,
    names: dict[str, str],
) -> None:
    pytest.importorskip(package)
    kdedge("export", "tiny/02", f"--{target}", "--int8", "--int8-minutes", "0").succeeds()
    record = read(ARTIFACT / "artifact.json")
    files = {file["name"]: file for file in record["files"] if file["target"] == target}
    assert {name: file["precision"] for name, file in files.items()} == names
    first = record["files"][0]["parity"]
    for file in files.values():
        assert file["gate"] == "passed"
        # On the images that the ONNX files were compared on, with their labels
        assert file["parity"]["images_hash"] == first["images_hash"]
        assert file["parity"]["n_labeled"] == 20
        assert file["parity"]["runtime"].startswith(f"{target} ")
    assert files[next(iter(names))]["parity"]["agreement_percent"] == 100

    listed = {file["name"]: file["sha256"] for file in record["files"]} | record["others"]
    assert listed.keys() == {path.name for path in ARTIFACT.iterdir()} - {"artifact.json"}
    for name, sha256 in listed.items():
        assert hashlib.sha256((ARTIFACT / name).read_bytes()).hexdigest() == sha256
    card = (ARTIFACT / "README.md").read_text()
    assert all(f"| `{name}` |" in card for name in files)

    expected = predict("--backend", "onnxruntime")
    found = predict(
        *(() if target == "openvino" else ("--backend", target))
    )  # OpenVINO's by itself
    assert [one["top"][0]["class"] for one in found] == [one["top"][0]["class"] for one in expected]
    for precision in names.values():
        answers = predict("--backend", target, "--precision", precision)
        assert len(answers) == len(expected)

    kdedge(
        *("bench", str(ARTIFACT), "--batch", "1", "--seconds", "0.01", "--calls", "3"),
        *("--format", "json", "--output", "bench.json"),
    ).succeeds()
    measured = {row["model"]: row["runtime"] for row in read(Path("bench.json"))["rows"]}
    assert {measured[name].split()[0] for name in files} == {target}
    assert kdedge("report", "tiny/02", "--output", "report").code == 0
    (page,) = Path("report").rglob("*.html")
    assert all(name in page.read_text() for name in files)


@pytest.mark.parametrize(
    ("flag", "backend", "changes"),
    [
        (None, "onnxruntime", ["class_names", "interpolation", "head"]),
        ("--openvino", "openvino", ["class_names", "interpolation", "head"]),
        ("--with-preprocess", "onnxruntime-image", ["class_names", "head"]),
    ],
)
def test_a_description_that_a_model_file_does_not_repeat_is_refused_although_its_hash_is_right(
    kdedge: Kdedge, flag: str | None, backend: str, changes: list[str]
) -> None:
    pytest.importorskip(backend.partition("-")[0])
    if flag is not None:
        kdedge("export", str(ARTIFACT), flag).succeeds()
    command = ("predict", str(ARTIFACT), "test/cat", "--backend", backend)
    kdedge(*command).succeeds()
    artifact = load_artifact(ARTIFACT)
    first, second, *rest = artifact.class_names
    bilinear = dataclasses.replace(artifact.preprocess, interpolation="bilinear")
    changed: dict[str, Any] = {
        "class_names": {"class_names": (second, first, *rest)},
        "interpolation": {"preprocess": bilinear},
        "head": {"head": "argmax"},
    }
    for name in changes:
        dataclasses.replace(artifact, **changed[name]).save()
        kdedge(*command).fails(3, "artifact.json: ", " was written for ")


def test_without_the_package_the_onnx_files_are_written_and_the_line_is_told(
    trained: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = kdedge("export", "tiny/02", "--openvino")
    assert done.code == 4
    assert "pip install 'kdedge[openvino]'" in done.err
    assert (ARTIFACT / "model.onnx").is_file()
    assert not (ARTIFACT / "model.xml").exists()


# The fastest file on a CPU


@pytest.fixture
def quick_clock(quick_machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """For `--cpu`: a file is timed for a fiftieth of its time."""
    now = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: 50 * now())


def used(kdedge: Kdedge, *options: str) -> tuple[str, str]:
    """The file that `predict` used, and all that it said."""
    done = kdedge("predict", str(ARTIFACT), "test", *options).succeeds()
    found = re.search(r"Using \S+/(\S+) on \S+ \S+ CPU", done.err)
    assert found is not None, done.err
    return found[1], done.err


def test_a_run_gets_its_fastest_file_which_predict_takes_on_this_machine(
    trained: Path, kdedge: Kdedge, quick_clock: None, system_file: Callable[[str, str], None]
) -> None:
    pytest.importorskip("openvino")
    done = kdedge("export", "tiny/02", "--cpu").succeeds()
    choice = api.cpu_choice(ARTIFACT)
    names = {one.file for one in choice.candidates}
    assert names >= {"model.onnx", "model.int8-cpu.onnx", "model.xml", "model.int8.xml"}
    assert "model.int8.onnx" not in names
    assert all(one.time is not None for one in choice.candidates)
    assert choice.file in done.out
    assert choice.file in (ARTIFACT / "README.md").read_text().partition("## Fastest on ")[2]

    assert used(kdedge)[0] == choice.file
    assert "measured on another machine" not in used(kdedge)[1]
    assert used(kdedge, "--precision", "fp32", "--backend", "onnxruntime")[0] == "model.onnx"

    assert kdedge("report", "tiny/02", "--output", "report").code == 0
    (page,) = Path("report").rglob("*.html")
    assert f": {choice.file}" in page.read_text(encoding="utf-8").partition("Fastest on ")[2]

    done = kdedge("export", str(ARTIFACT), "--cpu", "--json")
    assert done.code == 0, done.err
    again = json.loads(done.out)["cpu_choice"]
    assert {one["file"] for one in again["candidates"]} == names
    load_artifact(ARTIFACT).checked(CPU_CHOICE)

    system_file("/proc/cpuinfo", "processor\t: 0\nmodel name\t: Another CPU\nflags\t\t: fpu avx2\n")
    name, said = used(kdedge)
    assert name == "model.xml"
    assert "measured on another machine" in said
    assert "Another CPU" in said


def test_what_is_missing_is_listed_with_the_command_that_says_how_to_install_it(
    kdedge: Kdedge, quick_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("openvino", "litert_torch"):
        monkeypatch.setitem(sys.modules, package, None)
    done = kdedge("export", str(ARTIFACT), "--cpu").succeeds()
    later, absent = (line for line in done.out.splitlines() if line.startswith("Not tried: "))
    assert "LiteRT int8: it is made when a run is exported: kdedge export RUN" in later
    assert absent.endswith("OpenVINO fp16, OpenVINO int8: not installed; kdedge doctor says how to")
    choice = api.cpu_choice(ARTIFACT)
    assert {one.file for one in choice.candidates} == {"model.onnx", "model.int8-cpu.onnx"}
    tested = "data.unlabeled={folder: test, include_test: true}"  # leaves no image for INT8
    done = kdedge("export", "tiny/02", "--cpu", "--set", tested).succeeds()
    assert "ONNX int8: the recipe has no unlabeled images to spare" in done.out


def test_an_artifact_that_may_not_be_written_is_told_before_anything_is_made(
    kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access  # root may write everywhere, so the system's answer is replaced

    def read_only(path: Any, mode: int) -> bool:
        return access(path, mode) and not (mode & os.W_OK and Path(path) == ARTIFACT)

    monkeypatch.setattr(os, "access", read_only)
    before = {path.name for path in ARTIFACT.iterdir()}
    done = kdedge("export", str(ARTIFACT), "--cpu")
    assert done.code == 7
    assert f"{ARTIFACT} may not be written." in done.err
    assert "Wrote" not in done.err
    assert {path.name for path in ARTIFACT.iterdir()} == before
