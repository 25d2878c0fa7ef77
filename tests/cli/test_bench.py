"""`kdedge bench` on a trained and exported project."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kdedge as api

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

QUICK = ("--seconds", "0.01", "--calls", "3", "--batch", "1,2")
ARTIFACT = "runs/tiny/02/artifacts/01"

Kdedge = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("exported", "quick_machine")


def before_each_run(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, int], None]) -> None:
    """Lets something happen before each run of ONNX Runtime: gets session and number of images."""
    import onnxruntime

    sessions = itertools.count()

    class Watched(onnxruntime.InferenceSession):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.number = next(sessions)

        def run(self, names: Any, inputs: Any, *options: Any) -> Any:
            (images,) = inputs.values()
            act(self.number, len(images))
            return super().run(names, inputs, *options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Watched)


def read(path: str | Path) -> Any:
    return json.loads(Path(path).read_text())


def test_the_number_of_threads_of_the_environment_is_recorded(
    kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = kdedge("bench", f"{ARTIFACT}/model.onnx", *QUICK, "--all", "--output", "speed.json")
    assert read("speed.json")["settings"]["threads"] == 1
    assert "1 threads" in " ".join(done.out.split())
    api.bench(f"{ARTIFACT}/model.onnx", seconds=0.01, calls=3, output="again.json")
    assert read("again.json")["settings"]["threads"] == 1


def test_a_bare_call_measures_the_newest_student_against_everything(kdedge: Kdedge) -> None:
    done = kdedge("bench", *QUICK).succeeds()
    rows = read("runs/tiny/02/bench/01.json")["rows"]
    assert [(row["model"], row["protocol"]) for row in rows] == [
        ("Zero-shot CLIP", "cached"),
        ("CoOp", "paper"),
        ("CoOp", "cached"),
        ("CoCoOp", "paper"),
        ("PromptSRC", "paper"),
        ("PromptSRC", "cached"),
        ("teacher, PromptSRC", "cached"),
        ("student, PromptKD", "cached"),
        ("model.onnx", "cached"),
        ("model.fp16.onnx", "cached"),
        ("model.int8.onnx", "cached"),
        ("model.int8-cpu.onnx", "cached"),
    ]
    by_name = {(row["model"], row["protocol"]): row for row in rows}
    for row in rows:
        batches = [(m["batch"], m["inputs"]) for m in row["measurements"]]
        end_to_end = [(1, "image file")] if row["model"].endswith(".onnx") else []
        assert batches == [(1, "on device"), (2, "on device"), *end_to_end]
        assert all(len(m["samples_ms"]) == m["n_calls"] >= 3 for m in row["measurements"])
        assert row["gmacs_image"] > 0
        assert row["n_parameters"] > 0
        if row["memory_bytes"] is not None and row["runtime"].startswith("PyTorch"):
            assert row["memory_bytes"] >= 4 * row["n_parameters"]
    # Texts, at 77 positions of a tower of width 64 with 3 layers, in place of 4 class vectors
    tower = (49408 + 77 + 24) * 64 + 3 * (12 * 64**2 + 13 * 64) + 2 * 64
    paper, stored = (by_name["CoOp", kind]["n_parameters"] for kind in ("paper", "cached"))
    assert paper - stored == tower - 4 * 24
    folded, unfolded = by_name["model.onnx", "cached"], by_name["student, PromptKD", "cached"]
    assert folded["gmacs_image"] < unfolded["gmacs_image"]
    weights = read("runs/tiny/02/provenance.json")["summary"]["parameters"]
    assert unfolded["n_parameters"] == weights + 4 * 40  # the class vectors
    student = read("runs/tiny/02/eval.json")["student"]
    assert unfolded["accuracy"]["harmonic_mean"] == student["harmonic_mean"]
    assert by_name["CoOp", "cached"]["accuracy"] is None  # it was never trained here
    assert max(map(len, done.out.splitlines())) <= 80
    assert "Wrote runs/tiny/02/bench/01.json\nNext: kdedge report runs/tiny/02" in done.err


def test_a_files_accuracy_is_its_models_less_the_drop_on_the_compared_images(
    kdedge: Kdedge,
) -> None:
    assert kdedge("export", "tiny/02", "--set", "export.parity_images=7").code == 0
    done = kdedge("bench", *QUICK, "--against", "none", "--all").succeeds()
    assert "tiny/02, less the drop on 7 of 20 images of data.test" in done.out
    rows = {row["model"]: row for row in read("runs/tiny/02/bench/01.json")["rows"]}
    own = rows["student, PromptKD"]["accuracy"]
    for file in read("runs/tiny/02/artifacts/02/artifact.json")["files"]:
        accuracy = rows[file["name"]]["accuracy"]
        expected = own["all"] - file["parity"]["accuracy_drop"]
        assert accuracy["all"] == pytest.approx(min(100, max(0, expected)))
        assert [accuracy[key] for key in ("n_images", "images_hash")] == [20, own["images_hash"]]
    kdedge("bench", "runs/tiny/02/artifacts/02", *QUICK, "--output", "alone.json").succeeds()
    (first, *_) = read("alone.json")["rows"]
    assert first["accuracy"]["n_images"] == 7


def test_class_texts_count_with_the_call_under_the_papers_protocol(kdedge: Kdedge) -> None:
    given = ("--against", "coop,vpt,clip_pr,lafter", "--output", "b.json")
    kdedge("bench", *QUICK, *given).succeeds()
    rows = {(row["model"], row["protocol"]): row for row in read("b.json")["rows"]}
    paper, cached = rows["CoOp", "paper"], rows["CoOp", "cached"]
    # 4 texts at all 77 positions of a text encoder of width 64, the last block for one token
    n, width, n_classes, n_layers = 77, 64, 4, 3
    whole = 12 * n * width**2 + 2 * n**2 * width
    last = 2 * n * width**2 + 10 * width**2 + 2 * n * width
    texts = n_classes * ((n_layers - 1) * whole + last + width * 24)
    assert paper["gmacs_call"] == pytest.approx(texts / 1e9, rel=1e-9)
    assert cached["gmacs_call"] == 0
    assert paper["gmacs_image"] == cached["gmacs_image"]
    assert ("VPT", "paper") not in rows  # its texts are frozen
    assert not Path("runs/tiny/02/bench").exists()
    # Classifiers of their own have no texts
    for model in ("CLIP-PR", "LaFTer"):
        assert (model, "paper") not in rows
        assert rows[model, "cached"]["gmacs_call"] == 0
    adapter, vectors = 24 * 128 + 128 * 128 + 128 * 4, 24 * 4
    own, plain = (rows[m, "cached"]["gmacs_image"] for m in ("CLIP-PR", "Zero-shot CLIP"))
    assert own - plain == pytest.approx((adapter - vectors) / 1e9, rel=1e-6)


def test_a_trained_baseline_beside_a_run_brings_its_accuracy(kdedge: Kdedge) -> None:
    assert kdedge("train", "r.yaml", "--method", "coop", "--epochs", "1").code == 0
    shutil.copytree("runs", "other")
    expected = read("runs/tiny/03/eval.json")["baseline"]["harmonic_mean"]

    def accuracies(run: str) -> set[float | None]:
        done = kdedge("bench", run, *QUICK, "--against", "coop", "--format", "json")
        assert done.code == 0, done.err
        rows = [row["accuracy"] for row in json.loads(done.out)["rows"] if row["model"] == "CoOp"]
        return {one and one["harmonic_mean"] for one in rows}

    assert accuracies("tiny/02") == {expected}
    shutil.rmtree("runs")
    assert accuracies("other/tiny/02") == {expected}
    assert kdedge("eval", "other/tiny/02").code == 0
    assert not Path("runs").exists()  # where a cache would have been written
    shutil.copytree("other", "runs")
    shutil.rmtree("other/tiny/03")
    assert accuracies("other/tiny/02") == {None}


def test_a_run_is_measured_without_what_it_lacks(trained: Path, kdedge: Kdedge) -> None:
    shutil.rmtree("runs/tiny/01")
    done = kdedge("bench", *QUICK, "--against", "none").succeeds()
    said = " ".join(done.out.replace(str(trained) + "/", "").split())
    assert "Left out: teacher: runs/tiny/01 is not a run folder" in said
    assert "Left out: tiny/02 folded: not exported yet; export with kdedge export" in said


def test_two_runs_of_one_recipe_are_told_apart(trained: Path, kdedge: Kdedge) -> None:
    other = str(shutil.copytree("runs", trained / "other") / "tiny/01")
    done = kdedge("bench", "runs/tiny/02", other, *QUICK, "--against", "none", "--format", "json")
    assert done.code == 0, done.err
    rows = [(row["source"], row["model"]) for row in json.loads(done.out)["rows"]]
    assert rows == [
        ("tiny/02", "Zero-shot CLIP"),
        ("tiny/02", "teacher, PromptSRC"),
        ("tiny/02", "student, PromptKD"),
        (other, "Zero-shot CLIP"),
        (other, "teacher, PromptSRC"),
    ]
    assert Path("runs/tiny/02/bench/01.json").exists()  # in the first one's folder
    assert not Path("runs/tiny/01/bench").exists()


def test_the_newest_artifact_is_the_one_with_the_highest_number(kdedge: Kdedge) -> None:
    for name in ("9", "100", "backup"):
        shutil.copytree(ARTIFACT, f"runs/tiny/02/artifacts/{name}")
    for name in ("01", "9", "backup"):
        Path(f"runs/tiny/02/artifacts/{name}/artifact.json").write_text("{")
    assert "model.int8-cpu.onnx" in kdedge("bench", *QUICK, "--against", "none").succeeds().out


def test_one_file_of_an_artifact_is_measured_alone(kdedge: Kdedge) -> None:
    done = kdedge("bench", f"{ARTIFACT}/model.onnx", *QUICK, "--format", "json")
    assert done.code == 0, done.err
    (row,) = json.loads(done.out)["rows"]
    assert row["model"] == "model.onnx"
    assert row["accuracy"]["agreement"] == 100
    assert not list(Path(ARTIFACT).glob("*.json.*"))
    record = Path(ARTIFACT, "artifact.json")
    record.write_text(record.read_text().replace('"target": "onnx"', '"target": "coreml"'))
    kdedge("bench", f"{ARTIFACT}/model.onnx").fails(2, "kdedge does not run")


def test_an_artifact_needs_neither_torch_nor_onnx() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'open_clip', 'pynvml'): sys.modules[name] = None\n"
        "from kdedge.cli.main import run\n"
        f"sys.exit(run(['bench', {ARTIFACT!r}, '--all', '--seconds', '0.01', '--batch', '1']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "model.int8-cpu.onnx" in done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *((f"--batch={value}", "--batch") for value in ("1,0", "x", "²")),
        *((f"--seconds={value}", f"seconds is {value}") for value in ("nan", "inf")),
        ("--longest-call=nan", "--longest-call is nan"),
        ("--against=promptkd", "promptkd learns from a teacher: name its own run"),
        ("--against=coopp", "coopp"),
        (
            "--output=results/b.json",
            "results/b.json cannot be written: the folder results does not exist.",
        ),
    ],
)
def test_a_wrong_option_is_found_before_anything_is_measured(
    kdedge: Kdedge, given: str, said: str
) -> None:
    kdedge("bench", given).fails(2, said)


def test_a_file_that_cannot_be_loaded_leaves_the_other_rows(kdedge: Kdedge) -> None:
    file = Path(ARTIFACT) / "model.fp16.onnx"
    file.write_bytes(file.read_bytes() + b" ")
    done = kdedge("bench", ARTIFACT, *QUICK).succeeds()
    assert "model.fp16.onnx ended early:" in done.out
    assert "model.int8-cpu.onnx" in done.out


def test_nothing_is_overwritten(kdedge: Kdedge) -> None:
    Path("b.json").write_text("mine")
    assert kdedge("bench", ARTIFACT, *QUICK, "--output", "b.json").code == 2
    assert Path("b.json").read_text() == "mine"
    folder = Path("runs/tiny/02/bench")
    for name in ("07.json", "9.json", "10.json", "²", "backup.json", "11"):
        (folder / name).mkdir(parents=True)
    assert kdedge("bench", *QUICK, "--against", "none").code == 0
    assert (folder / "11.json").is_file()


def test_a_file_is_taken_before_the_measurement_and_not_kept_without_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there: list[bool] = []

    def fail(number: int, n_images: int) -> None:
        there.append(Path("b.json").exists())
        raise ZeroDivisionError

    before_each_run(monkeypatch, fail)
    with pytest.raises(api.DataError, match="cannot be run"):
        api.bench(ARTIFACT, batches=(1,), seconds=0.01, calls=3, output="b.json")
    assert (there, Path("b.json").exists()) == ([True] * 4, False)


def test_ctrl_c_keeps_what_was_measured(kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(number: int, n_images: int) -> None:
        if n_images == 2:
            raise KeyboardInterrupt

    before_each_run(monkeypatch, interrupt)
    done = kdedge("bench", ARTIFACT, *QUICK, "--output", "b.json")
    assert done.code == 130
    assert "Left out: the remaining measurements: the measurement was interrupted" in done.out
    rows = read("b.json")["rows"]
    assert {m["batch"] for row in rows for m in row["measurements"]} == {1}


def test_nothing_measured_leaves_nothing(kdedge: Kdedge, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = itertools.count()

    def interrupt(number: int, n_images: int) -> None:
        if next(runs) == 4:  # each of the four files has run once, when it was loaded
            raise KeyboardInterrupt

    before_each_run(monkeypatch, interrupt)
    done = kdedge("bench", ARTIFACT, *QUICK, "--output", "b.json")
    assert (done.code, done.out, done.err[-13:]) == (130, "", "interrupted.\n"[-13:])
    assert not Path("b.json").exists()


def test_ratios_are_against_one_row_or_there_is_none(kdedge: Kdedge) -> None:
    import onnx

    path, file = Path(ARTIFACT, "artifact.json"), Path(ARTIFACT, "model.onnx")
    model = onnx.load(file)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, file)
    record = read(path)
    record["files"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(json.dumps(record))
    assert kdedge("bench", ARTIFACT, *QUICK, "--output", "b.json").code == 0
    record = read("b.json")
    assert record["baseline"] == "model.onnx"
    assert record["left_out"]["model.onnx, batch 2"] == "it takes 1 per call"
    for row in record["rows"]:
        has_ratio = {m["batch"]: m["ratio"] is not None for m in row["measurements"]}
        assert has_ratio[1]
        assert not has_ratio.get(2)


def test_a_table_that_cannot_be_written_is_shown(kdedge: Kdedge) -> None:
    Path("runs/tiny/02/bench").write_text("a file is in the way")
    done = kdedge("bench", *QUICK, "--against", "none", "--format", "json")
    assert done.code == 7
    assert len(json.loads(done.out)["rows"]) == 7
    assert "runs/tiny/02/bench could not be written" in done.err
