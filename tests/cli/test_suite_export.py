"""`kdedge suite --export`: exports and times a suite's students, and marks the Pareto front."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdedge as api

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROOT = Path(__file__).parents[2]
CALL_MS = 1000 / 8
SUITE = """\
name: small
recipes: [r.yaml]
methods:
  - {name: PromptKD, method: promptkd}
  - {name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}
seeds: [1]
"""
OF_ONE = SUITE.replace(
    "  - {name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}\n", ""
)

Kdedge = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("forked_cells")


@pytest.fixture
def kdedge(kdedge: Kdedge, quick_machine: None, monkeypatch: pytest.MonkeyPatch) -> Kdedge:
    """Runs a command in this process; every call of a model takes CALL_MS.

    The machine does not tell what other processes do, so none disturbs a measurement.
    """
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 8)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sysconf = os.sysconf
    unknown = {"SC_CLK_TCK": "unknown"}  # a ValueError
    monkeypatch.setattr(os, "sysconf", lambda name: sysconf(unknown.get(name, name)))
    monkeypatch.setitem(sys.modules, "resource", None)
    return kdedge


@pytest.fixture
def exported(exported: Path) -> Path:
    """A project whose student has an INT8 export, and a suite of it."""
    (exported / "s.yaml").write_text(OF_ONE)
    return exported


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_students_that_lack_are_trained_and_all_are_exported_and_timed(kdedge: Kdedge) -> None:
    Path("s.yaml").write_text(SUITE)
    done = kdedge("suite", "s.yaml", "--export", "--json")
    assert done.code == 0, done.err
    files = json.loads(done.out)["exported"]["files"]
    assert {one["student"] for one in files} == {"PromptKD", "wide"}
    for one in files:
        assert (Path(one["file"]).name, one["gate"], one["doubt"]) == ("model.onnx", "passed", None)
        assert one["p50_ms"] == CALL_MS
        assert one["gflops"] > 0
    best = max(one["accuracy"] for one in files)  # all are equally fast
    assert [one["is_on_front"] for one in files] == [one["accuracy"] == best for one in files]


def test_an_artifact_that_is_there_is_used_and_a_missed_gate_is_not_ranked(
    exported: Path, kdedge: Kdedge
) -> None:
    (record,) = exported.glob("runs/tiny/02/artifacts/*/artifact.json")
    changed = read(record)
    of = {file["name"]: file for file in changed["files"]}
    of["model.int8.onnx"]["gate"] = "missed"
    of["model.fp16.onnx"]["parity"]["accuracy_percent"] = 99.0
    record.write_text(json.dumps(changed))
    done = kdedge("suite", "s.yaml", "--export")
    assert done.code == 0, done.err
    assert len(list(exported.glob("runs/tiny/02/artifacts/*"))) == 1
    made = read("suites/small/exported.json")
    files = {Path(one["file"]).name: one for one in made["files"]}
    assert files.keys() == of.keys()
    for name, one in files.items():
        assert one["accuracy"] == of[name]["parity"]["accuracy_percent"]
        assert (one["p50_ms"], one["n_bytes"]) == (CALL_MS, of[name]["n_bytes"])
        assert one["is_on_front"] == (name == "model.fp16.onnx")
    assert files["model.int8.onnx"]["doubt"] == "it missed its gates"
    student = read("runs/tiny/02/eval.json")["student"]
    assert files["model.onnx"]["harmonic_mean"] == student["harmonic_mean"]
    assert len(read(made["measurements"])["rows"]) == len(files)
    (line,) = (line for line in done.out.splitlines() if "model.fp16.onnx" in line)
    assert line.split()[:3] == ["PromptKD", "model.fp16.onnx", "yes"]
    assert "! PromptKD, model.int8.onnx: it missed its gates" in done.out
    assert "exported.md" in done.out
    assert "| PromptKD | model.fp16.onnx | yes |" in Path("suites/small/exported.md").read_text()


def test_a_student_without_files_is_told_and_the_last_one_ends_the_command(
    exported: Path, kdedge: Kdedge
) -> None:
    (record,) = exported.glob("runs/tiny/02/artifacts/*/artifact.json")
    record.write_text("{")
    done = kdedge("suite", "s.yaml", "--export")
    assert done.code == 3
    assert "PromptKD cannot be exported" in done.err
    assert "is not valid JSON" in done.err
    assert not Path("suites/small/exported.json").exists()


def test_in_python_the_files_are_part_of_the_suites_record(exported: Path, kdedge: Kdedge) -> None:
    del kdedge  # its clock
    made = api.run_suite("s.yaml", export=True).to_dict()
    assert json.loads(json.dumps(made["exported"])) == read("suites/small/exported.json")
    assert len(made["lines"]) == 1
