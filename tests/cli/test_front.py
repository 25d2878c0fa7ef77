"""`kdedge front`: trains, exports and measures a suite's students, and says what to deploy."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import kdedge as api
from kdedge.lock import locked
from kdedge.runtime.contention import Contention

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
QUICK = ("--seconds", "0.01", "--calls", "3")
CALL_MS = 1000 / 1024
SUITE = """\
name: small
recipes: [r.yaml]
methods:
  - {name: PromptKD, method: promptkd}
  - {name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}
seeds: [1]
set: {gates: {max_drop: 100, agreement: {fp16: 0%, int8: 0%}}}
"""
WITHOUT_FILES = SUITE.replace(
    "{name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}",
    "{name: CLIP, method: zeroshot}",
)

Kdedge = Callable[..., Any]


@pytest.fixture
def kdedge(kdedge: Kdedge, quick_machine: Any, monkeypatch: pytest.MonkeyPatch) -> Kdedge:
    """Runs a command in this process; every call of a model takes CALL_MS, on a quiet machine."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) / 1024)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    quiet = replace(quick_machine, watch=lambda: lambda: Contention(1.0, 1, 0.0, 0))
    return functools.partial(kdedge, obj=quiet)


@pytest.fixture
def exported(exported: Path) -> Path:
    """A project whose student has an INT8 export, and a suite of it and of zero-shot CLIP."""
    (exported / "s.yaml").write_text(WITHOUT_FILES)
    return exported


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


@pytest.mark.slow
@pytest.mark.usefixtures("forked_cells")
def test_a_suites_students_are_trained_exported_measured_and_one_is_named(
    trained: Path, kdedge: Kdedge
) -> None:
    Path("s.yaml").write_text(SUITE)
    done = kdedge("front", "s.yaml", *QUICK, "--max-ms", "1")
    assert done.code == 0, done.err
    front = read("fronts/small/front.json")
    rows = {row["student"]: row for row in front["rows"]}
    assert rows.keys() == {"PromptKD", "wide"}
    for row in rows.values():
        student = read(Path(row["run"]) / "eval.json")["student"]
        assert (row["file"], row["precision"], row["gate"]) == ("model.onnx", "fp32", "passed")
        assert row["accuracy"] == row["student_harmonic_mean"] == student["harmonic_mean"]
        assert row["p50_ms"] == CALL_MS
        assert row["n_bytes"] == (Path(row["artifact"]) / row["file"]).stat().st_size
        assert row["gflops"] > 0
        assert row["n_parameters"] > 0
        assert (row["doubt"], row["why_unranked"]) == (None, None)
    assert front["accuracy_name"] == "harmonic mean of base and novel"
    assert rows["PromptKD"]["run"].endswith("runs/tiny/02")  # which was trained before
    best = max(row["accuracy"] for row in rows.values())
    assert rows[front["deploy"]]["accuracy"] == best
    for row in rows.values():
        assert row["is_on_front"] == (row["accuracy"] == best)  # all are equally fast
    assert front["answer"].startswith(f"Deploy {front['deploy']}: {best:.2f} %, 0.977 ms, the most")
    assert front["answer"] in done.out
    assert done.out.splitlines()[-1].startswith("Next: kdedge predict ")
    folder = Path("fronts/small")
    for name in ("front.svg", "front-size.svg", "front-gflops.svg"):
        texts = {element.text for element in ET.parse(folder / name).getroot().iter()}
        assert {"PromptKD", "wide", "Pareto front"} <= texts
    assert "| PromptKD |" in (folder / "front.md").read_text()
    lines = list(csv.DictReader(io.StringIO((folder / "front.csv").read_text())))
    assert [line["student"] for line in lines] == [row["student"] for row in front["rows"]]
    measured = read(front["measurements"])
    assert {row["model"] for row in measured["rows"]} == {f"{name}: model.onnx" for name in rows}

    again = kdedge("front", "s.yaml", *QUICK, "--max-ms", "0.5", "--json")
    assert again.code == 6
    assert "kdedge: There is no file within 0.5 ms. The nearest is " in again.err
    assert json.loads(again.out)["deploy"] is None
    assert len(list(trained.glob("runs/*/*/artifacts/*"))) == 2  # both are used again
    assert sorted(path.name for path in folder.glob("bench/*")) == ["01.json", "02.json"]


def test_an_artifact_is_used_again_if_an_export_would_make_the_same(
    exported: Path, kdedge: Kdedge
) -> None:
    def front(*options: str) -> tuple[int, dict[str, Any]]:
        done = kdedge("front", "s.yaml", *QUICK, *options)
        assert done.code == 0, done.err
        n_exports = len(list(exported.glob("runs/tiny/02/artifacts/*")))
        return n_exports, read("fronts/small/front.json")

    n_exports, made = front("--int8")
    assert n_exports == 1
    files = ["model.onnx", "model.fp16.onnx", "model.int8.onnx", "model.int8-cpu.onnx"]
    rows = {row["file"]: row for row in made["rows"]}
    assert sorted(rows, key=str) == sorted([*files, None], key=str)
    assert [rows[file]["label"] for file in files] == [
        "PromptKD, fp32",
        "PromptKD, fp16",
        "PromptKD, model.int8.onnx",
        "PromptKD, model.int8-cpu.onnx",
    ]
    # Of the compressed files only the accuracy over all names is known
    assert made["accuracy_name"] == "accuracy over all names"
    parities = {one["name"]: one["parity"] for one in read_files(exported, "01")}
    for file in files:
        assert rows[file]["accuracy"] == parities[file]["accuracy_percent"]
    assert rows[None]["label"] == "CLIP"
    assert rows[None]["why_unranked"] == "it is zero-shot CLIP, which has no run to export"

    n_exports, made = front("--set", "export.parity_images=5")
    assert n_exports == 2
    assert read_files(exported, "02")[0]["parity"]["n_images"] == 5


def read_files(project: Path, number: str) -> list[dict[str, Any]]:
    """The files of an artifact of the student."""
    found: list[dict[str, Any]]
    found = read(project / f"runs/tiny/02/artifacts/{number}/artifact.json")["files"]
    return found


def test_an_interrupted_measurement_is_kept_and_the_next_call_trains_and_exports_nothing(
    exported: Path, kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    n_runs = itertools.count()
    with monkeypatch.context() as patch:

        class Interrupted(onnxruntime.InferenceSession):
            def run(self, *arguments: Any, **options: Any) -> Any:
                if next(n_runs) == 150:  # after the first measurements of the four files
                    raise KeyboardInterrupt
                return super().run(*arguments, **options)

        patch.setattr(onnxruntime, "InferenceSession", Interrupted)
        done = kdedge("front", "s.yaml", *QUICK)
    assert done.code == 130, done.err
    rows = read("fronts/small/bench/01.json")["rows"]
    assert [len(row["measurements"]) for row in rows] == [1, 1, 1, 1]
    assert not Path("fronts/small/front.json").exists()
    done = kdedge("front", "s.yaml", *QUICK)
    assert done.code == 0, done.err
    assert read("fronts/small/front.json")["measurements"] == "fronts/small/bench/02.json"
    assert len(list(exported.glob("runs/tiny/*"))) == 2
    assert len(list(exported.glob("runs/tiny/02/artifacts/*"))) == 1


def test_the_python_call_gives_the_front_and_the_commands_errors(exported: Path) -> None:
    with pytest.raises(TypeError, match="batch: no such keyword"):
        api.front("s.yaml", batch=3)
    with pytest.raises(api.RecipeError, match="calls is 1 and seconds is 2"):
        api.front("s.yaml", calls=1)
    with pytest.raises(api.RecipeError, match="min_accuracy is 400; expected 0 to 100 percent"):
        api.front("s.yaml", min_accuracy=400)
    folder = exported / "fronts/small"
    folder.mkdir(parents=True)
    in_use = pytest.raises(api.InUseError, match="fronts/small is in use by another process")
    with locked(folder / ".lock"), in_use:
        api.front("s.yaml")
    made = api.front("s.yaml", seconds=0.01, calls=3, threads=1)
    assert [row.student for row in made.rows] == [*["PromptKD"] * 4, "CLIP"]
    assert made.chosen is None
    assert str(made).splitlines()[-1] == made.answer
    assert json.loads(json.dumps(made.to_dict())) == read("fronts/small/front.json")


@pytest.mark.usefixtures("forked_cells")
def test_a_row_that_cannot_be_trained_costs_one_row(exported: Path, kdedge: Kdedge) -> None:
    broken = "{name: broken, method: promptkd, set: {student.weights: broken.pt}}"
    Path("s.yaml").write_text(WITHOUT_FILES.replace("{name: CLIP, method: zeroshot}", broken))
    Path("broken.pt").write_bytes(b"not weights")
    done = kdedge("front", "s.yaml", *QUICK, "--max-ms", "1")
    assert done.code == 3, done.err
    assert "kdedge: 1 of 2 cells failed.\n" in done.err
    *ranked, failed = read("fronts/small/front.json")["rows"]
    assert [row["student"] for row in ranked] == ["PromptKD"] * 4
    assert failed["student"] == "broken"
    assert failed["why_unranked"].startswith("its training failed: ")
    assert "broken.pt" in failed["why_unranked"]
    assert "Deploy PromptKD, " in done.out


def test_nothing_is_written_where_no_row_can_be_exported(exported: Path, kdedge: Kdedge) -> None:
    record = exported / "runs/tiny/02/artifacts/01/artifact.json"
    record.write_text(record.read_text().replace('"scores"', '"argmax"'))
    (exported / "runs/tiny/02/student.safetensors").unlink()
    done = kdedge("front", "s.yaml", *QUICK)
    assert done.code == 3, done.err
    assert "Exporting tiny/02 again." in done.err  # the record was changed by hand
    assert "PromptKD cannot be exported: " in done.err
    assert "student.safetensors" in done.err.splitlines()[-1] + done.err.splitlines()[-2]
    assert [path.name for path in exported.glob("fronts/small/*")] == [".lock"]


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("[r.yaml]", "[r.yaml, t.yaml]", (), "s.yaml has the recipes tiny, two, but a front"),
        ("method: promptkd}", "method: promtkd}", (), "Did you mean promptkd?"),
        ("", "", ("--set", "export.hed=argmax"), "export.hed is not a known key"),
        ("", "", ("--max-ms", "0"), "--max-ms"),
    ],
)
def test_a_mistake_is_found_before_anything_is_trained(
    project: Path, kdedge: Kdedge, old: str, new: str, options: tuple[str, ...], message: str
) -> None:
    Path("t.yaml").write_text(Path("r.yaml").read_text().replace("name: tiny", "name: two"))
    Path("s.yaml").write_text(SUITE.replace(old, new, 1))
    done = kdedge("front", "s.yaml", *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert not (project / "fronts").exists()
    assert not (project / "runs").exists()
