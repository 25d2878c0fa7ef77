"""What version 0.1 wrote is read, and what it left unfinished is finished: tests/golden/v0_1.

A resumed run ends with the weights that version 0.1 gave, up to rounding: CPUs and versions add in
different orders. `test_killed_runs.py` holds that one version on one machine gives the same bits.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import load_file

from kdedge.benchmarking.device import device_sheet

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "v0_1"
FINISHED = "../finished/runs"
INTERRUPTED = sorted(path.name for path in (GOLDEN / "interrupted").iterdir())
JOBS = sorted(path.name for path in (GOLDEN / "jobs").iterdir())
TEXTS = {".yaml", ".json", ".jsonl", ".txt", ".log"}
GRIP = (
    "baseline.optim={epochs: 3, batch_size: 4, warmup_epochs: 0}",
    "baseline.settings={variant: grip, rounds: 2, promptsrc:"
    " {prompt_depth_text: 2, prompt_depth_vision: 2, n_anchor_templates: 4}}",
)
ROUNDED = {"student-full-adamw-kill": 3e-2}
"""The relative error that rounding may cause, where it is more than 1e-3: AdamW divides by the
roots of small second moments. Noise of 2e-7 on the checkpoint's weights causes 1.4e-2 there and
2e-5 in other runs; a lost optimizer state causes 0.17 there and at least 0.05 in others."""
QUICK = ("--seconds", "0.01", "--calls", "3", "--batch", "1")

Run = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def weights(
    drawn_clip: Callable[..., dict[str, np.ndarray]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of the two CLIPs, which are drawn and not stored."""
    folder = tmp_path_factory.mktemp("clips")
    for role, clip in json.loads((GOLDEN / "project/clips.json").read_text()).items():
        drawn = drawn_clip(clip["sizes"], seed=clip["seed"], tag=clip["tag"])
        save_file(drawn, folder / f"{role}.safetensors")
    return folder


@pytest.fixture
def site(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, with the paths in it made this folder's; its project is entered."""
    folder = tmp_path / "site"
    shutil.copytree(GOLDEN, folder)
    for file in folder.rglob("*"):
        if file.suffix in TEXTS and "@" in (text := file.read_text()):
            file.write_text(text.replace("@ROOT@", str(folder)).replace("@TREE@", str(ROOT)))
    for file in weights.iterdir():
        (folder / "project" / file.name).hardlink_to(file)
    for case in (folder / "interrupted").iterdir():
        if case.name.startswith(("student", "views")):
            shutil.copytree(
                folder / "finished/runs/teacher-promptsrc", case / "runs/teacher-promptsrc"
            )
    monkeypatch.chdir(folder / "project")
    return folder


@pytest.fixture
def kdedge(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command, which must succeed, and gives its stdout."""
    from kdedge.cli.main import run

    def run_command(*arguments: str, codes: tuple[int, ...] = (0,)) -> str:
        capsys.readouterr()
        code = run(arguments)
        captured = capsys.readouterr()
        assert code in codes, captured.err
        return captured.out

    return run_command


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def records(runs: Path) -> dict[str, Any]:
    """Run -> its provenance."""
    return {
        str(file.parent.relative_to(runs)): read(file)
        for file in sorted(runs.glob("*/*/provenance.json"))
    }


def overrides(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def assert_same_tensors(found: Path, expected: Path, *, within: float) -> None:
    """Compares each tensor; `within` is the largest relative error by the norm."""
    new, old = load_file(found), load_file(expected)
    assert new.keys() == old.keys()
    for name, value in old.items():
        assert new[name].shape == value.shape, name
        error = (new[name].double() - value.double()).norm() / (value.double().norm() + 1e-12)
        assert error <= within, name


@pytest.mark.parametrize("name", ["teacher-promptsrc", "student", "student-full", "grip"])
def test_a_finished_run_is_shown_and_measures_as_it_did(site: Path, kdedge: Run, name: str) -> None:
    run = site / "finished/runs" / name / "01"
    shown = json.loads(kdedge("show", f"{name}/01", "--runs", FINISHED, "--json"))
    assert shown["status"] == "finished"
    measured = json.loads(kdedge("eval", f"{name}/01", "--runs", FINISHED, "--json"))
    stored = read(run / "eval.json")[read(run / "provenance.json")["kind"]]
    for key in ("n_images", "all", "base", "novel", "harmonic_mean"):
        assert measured[key] == pytest.approx(stored[key]), key
    assert measured["ece_percent"] == pytest.approx(stored["ece_percent"], rel=1e-3)


def test_a_finished_run_of_rounds_is_found_again(site: Path, kdedge: Run) -> None:
    before = records(site / "finished/runs")
    command = ("train", "r.yaml", "--method", "pseudo_label", *overrides(*GRIP), "--resume")
    kdedge(*command, "--runs", FINISHED)
    assert records(site / "finished/runs") == before


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_goes_on_and_ends_as_it_would_have(
    site: Path, kdedge: Run, name: str
) -> None:
    case = site / "interrupted" / name
    expected = read(case / "resumed/state.json")
    runs, run = case / "runs", case / "runs" / expected["run"]
    before = records(runs)
    command = read(case / "command.json")
    command[command.index("--runs") + 1] = str(runs)
    kdedge(*command, "--resume")

    after = records(runs)
    assert after.keys() == before.keys()
    assert len(after[expected["run"]]["resumed"]) == 1
    assert after[expected["run"]]["status"] == "finished"
    (weights,) = (case / "resumed").glob("*.safetensors")
    assert_same_tensors(run / weights.name, weights, within=ROUNDED.get(name, 1e-3))
    if (run / "metrics.jsonl").exists():  # rounds have their own
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        epochs = [line for line in lines if line.get("kind") == "epoch"]
        assert [line["epoch"] for line in epochs] == [line["epoch"] for line in expected["epochs"]]
        losses = [line["loss"] for line in expected["epochs"]]
        assert [line["loss"] for line in epochs] == pytest.approx(losses, rel=1e-4)
    for number, labels in expected["pseudo_labels"].items():
        file = run / "rounds" / number / "pseudo_labels.jsonl"
        entries = [json.loads(line) for line in file.read_text().splitlines()[1:]]
        assert [[entry["image"], entry["class"]] for entry in entries] == labels
    for key, value in expected["eval"].items():
        if key in {"all", "base", "novel", "harmonic_mean"}:
            assert read(run / "eval.json")[weights.stem][key] == pytest.approx(value), key


def test_images_that_version_0_1_left_out_make_another_run(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It did not read GIF: the images are others now, and the old run is left as it was."""
    from kdedge.cli.main import run

    Image.new("RGB", (40, 40), "red").save("pool/new.gif")
    runs = site / "interrupted/student-kill/runs"
    before = records(runs)
    command = read(site / "interrupted/student-kill/command.json")
    command[command.index("--runs") + 1] = str(runs)
    assert run([*command, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "There is no interrupted run of this student to resume. Starting a new run.\n" in said
    assert "was interrupted with different training images." in said
    after = records(runs)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1
    Path("pool/new.gif").unlink()
    assert run([*command, "--resume"]) == 0
    assert len(records(runs)) == len(after)  # without the new images it goes on


def test_a_half_filled_teacher_store_is_filled_and_what_it_has_is_used(
    site: Path, kdedge: Run
) -> None:
    runs = site / "interrupted/views-half-filled-kill/runs"
    shutil.rmtree(runs / "r")  # the store alone
    first_views = {file for file in runs.glob(".cache/teacher_store/*/view-000[12]/*.safetensors")}
    for file in set(runs.glob(".cache/teacher_store/*/*/*.safetensors")) - first_views:
        file.unlink()
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in first_views}
    assert len(before) == 2
    options = overrides("student.views=4", "student.optim.epochs=4")
    kdedge("teach", "r.yaml", "--store", *options, "--runs", str(runs))
    assert {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in before} == before
    assert len(list(runs.glob(".cache/teacher_store/*/*/*.safetensors"))) == 4


def test_an_old_teacher_teaches_a_new_student(site: Path, kdedge: Run) -> None:
    run = "teacher.run=../finished/runs/teacher-promptsrc/01"
    kdedge("distill", "r.yaml", *overrides(run, "optim.epochs=1"), "--runs", "new")
    (record,) = records(Path("new")).values()
    assert record["teacher_run"] == "teacher-promptsrc/01"
    old = read(site / "finished/runs/student/01/provenance.json")
    assert record["hashes"] == old["hashes"]


def assert_same_answers(lines: str, *, within_percent: float) -> None:
    found = [json.loads(line) for line in lines.splitlines()]
    stored = (GOLDEN / "finished/predictions.jsonl").read_text().splitlines()
    expected = [json.loads(line) for line in stored]
    assert [one["class"] for one in found] == [one["class"] for one in expected]
    for new, old in zip(found, expected, strict=True):
        scores = {one["class"]: one["score_percent"] for one in old["top"]}
        assert {one["class"]: one["score_percent"] for one in new["top"]} == pytest.approx(
            scores, abs=within_percent
        )


@pytest.mark.parametrize(("precision", "within_percent"), [("fp32", 0.01), ("fp16", 0.5)])
def test_an_artifact_answers_as_it_did(
    site: Path, kdedge: Run, precision: str, within_percent: float
) -> None:
    pytest.importorskip("onnxruntime")
    artifact = "../finished/runs/student/01/artifacts/01"
    images = sorted(map(str, Path("test").rglob("*.png")))
    options = ("--precision", precision, "--format", "jsonl", "--top", "4")
    assert_same_answers(
        kdedge("predict", artifact, *images, *options), within_percent=within_percent
    )


def test_an_old_student_is_exported_and_answers_as_its_old_artifact(
    site: Path, kdedge: Run
) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    kdedge("export", "student/01", "--runs", FINISHED, "--output", "artifact")
    images = sorted(map(str, Path("test").rglob("*.png")))
    answers = kdedge("predict", "artifact", *images, "--format", "jsonl", "--top", "4")
    assert_same_answers(answers, within_percent=0.01)


def test_old_bench_records_are_compared_with(site: Path, kdedge: Run) -> None:
    old = Path("old.json")  # as if this machine had measured it
    record = read(site / "finished/runs/student/01/bench/01.json")
    old.write_text(json.dumps({**record, "device": device_sheet()}))
    limits = ("--baseline", str(old), "--max-regress", "900%")
    options = ("--against", "none", *QUICK, "--output", "new.json", "--runs", FINISHED)
    kdedge("bench", "student/01", *options, *limits, codes=(0, 6))
    models = [[row["model"] for row in read(file)["rows"]] for file in (old, Path("new.json"))]
    assert models[0] == models[1]


def test_a_report_shows_what_old_runs_hold(site: Path, kdedge: Run) -> None:
    pytest.importorskip("matplotlib")
    kdedge("report", "student/01", "teacher-promptsrc/01", "--runs", FINISHED, "--output", "r")
    (page,) = Path("r").rglob("*.html")
    text = page.read_text()
    for word in ("student/01", "teacher-promptsrc/01", "model.fp16.onnx", "PromptKD"):
        assert word in text


def test_an_old_file_of_pseudo_labels_is_trained_on(site: Path, kdedge: Run) -> None:
    settings = ("baseline.settings={n_ctx: 3}", "baseline.optim={epochs: 1, batch_size: 4}")
    labels = "data.pseudo_labels=../finished/zeroshot.jsonl"
    options = overrides(*settings, labels)
    kdedge("train", "r.yaml", "--method", "coop", *options, "--runs", "new")
    (record,) = records(Path("new")).values()
    assert record["status"] == "finished"


def test_an_interrupted_suite_goes_on_without_training_finished_cells_again(
    site: Path, kdedge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    before = records(site / "suite/runs")
    assert [record["status"] for record in before.values()] == ["finished", "running"]
    where = ("--suites", "../suite/suites", "--runs", "../suite/runs", "--device", "cpu")
    kdedge("suite", "s.yaml", *where)
    after = records(site / "suite/runs")
    assert after.keys() == before.keys()
    assert after["r/01"] == before["r/01"]
    assert len(after["r/02"]["resumed"]) == 1
    table = csv.DictReader(io.StringIO((site / "suite/suites/small/table.csv").read_text()))
    assert [row["method"] for row in table][:2] == ["teacher", "promptkd"]
    cells = json.loads(kdedge("suite", "s.yaml", *where, "--dry-run", "--json"))["cells"]
    assert {cell["state"] for cell in cells} == {"finished"}


@pytest.mark.parametrize("number", JOBS)
def test_the_run_of_each_kind_of_job_is_found_again(site: Path, kdedge: Run, number: str) -> None:
    folder = site / "jobs" / number
    before = records(folder / "runs")
    command = read(folder / "command.json")
    kdedge(*command, "--resume", "--runs", str(folder / "runs"), "--device", "cpu")
    assert records(folder / "runs") == before
