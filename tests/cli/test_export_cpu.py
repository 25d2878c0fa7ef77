"""`kdedge export --cpu`: from a run or an artifact to the file that `predict` takes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdedge as api
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.cpu_choice import CPU_CHOICE

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package)

ARTIFACT = Path("runs/tiny/02/artifacts/01")

# A student of two epochs hardly prefers one class: rounding changes its mind.
LOOSE = ("--set", "gates.agreement.int8=0%", "--set", "gates.agreement.fp16=0%")
LOOSE += ("--set", "gates.max_drop=100")

Kdedge = Callable[..., Any]


def used(kdedge: Kdedge, *options: str) -> tuple[str, str]:
    """The file that `predict` used, and all that it said."""
    done = kdedge("predict", str(ARTIFACT), "test", *options)
    assert done.code == 0, done.err
    found = re.search(r"(\S+) on \S+ \S+ CPU", done.err)
    assert found is not None, done.err
    return found[1], done.err


def test_a_run_gets_its_fastest_file_which_predict_takes_on_this_machine(
    trained: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    done = kdedge("export", "tiny/02", "--cpu", *LOOSE)
    assert done.code == 0, done.err
    choice = api.cpu_choice(ARTIFACT)
    assert choice is not None
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

    read_text = Path.read_text

    def read(path: Path, *arguments: Any, **options: Any) -> str:
        if path == Path("/proc/cpuinfo"):
            return "processor\t: 0\nmodel name\t: Another CPU\nflags\t\t: fpu avx2\n"
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read)
    name, said = used(kdedge)
    assert name == "model.xml"
    assert "measured on another machine" in said
    assert "Another CPU" in said


def test_what_is_missing_is_listed_with_the_line_that_installs_it(
    exported: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("openvino", "litert_torch"):
        monkeypatch.setitem(sys.modules, package, None)
    done = kdedge("export", str(ARTIFACT), "--cpu")
    assert done.code == 0, done.err
    assert (
        "Not tried: LiteRT int8: the artifact has none; first pip install 'kdedge[litert]'; then"
        " it is made when a run is exported: kdedge export RUN --cpu" in done.out
    )
    assert "Not tried: OpenVINO int8: " in done.out
    assert "pip install 'kdedge[openvino]'" in done.out
    choice = api.cpu_choice(ARTIFACT)
    assert choice is not None
    assert {one.file for one in choice.candidates} == {"model.onnx", "model.int8-cpu.onnx"}


def test_a_file_that_misses_its_gate_is_out_and_the_command_succeeds(
    trained: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    tight = ("gates.agreement.int8=100%", "gates.agreement.fp16=0%", "gates.max_drop=0")
    sets = [part for gate in tight for part in ("--set", gate)]
    done = kdedge("export", "tiny/02", "--cpu", "--classes", "classes.txt", *sets)
    assert done.code == 0, done.err
    out = {one.file: one.out for one in api.cpu_choice(ARTIFACT).candidates}  # type: ignore[union-attr]
    gate = load_artifact(ARTIFACT).file("model.int8-cpu.onnx").gate
    assert (out["model.int8-cpu.onnx"] is None) == (gate == "passed")
    if gate == "missed":
        assert used(kdedge)[0] == "model.onnx"


def test_a_choice_that_cannot_be_kept_overwrites_nothing_and_is_not_called_written(
    exported: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    (ARTIFACT / CPU_CHOICE).write_text("mine")
    done = kdedge("export", str(ARTIFACT), "--cpu")
    assert done.code == 3
    assert f"{CPU_CHOICE} exists, and nothing is overwritten" in done.err
    assert "Wrote" not in done.err
    assert (ARTIFACT / CPU_CHOICE).read_text() == "mine"


def test_an_artifact_that_may_not_be_written_is_told_before_anything_is_made(
    exported: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
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
