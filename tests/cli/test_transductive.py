"""Transductive labels: written, used in distillation, refreshed, killed, reported."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.runs.folder import RunFolder
from kdedge.setup.workspace import Workspace
from kdedge.training.find_teacher import open_teacher
from kdedge.training.job.job import batches_of
from kdedge.training.student import student_job, student_parts, teaching_of

Run = Callable[..., Any]
Start = Callable[..., Any]
LABELS = "labels.jsonl"
WRITE = ("pseudo-label", "r.yaml", "--method", "transductive")
TARGETS = ("--set", "student.targets={kind: transductive, weight: 0.8}")
DISTILL = ("distill", "r.yaml", "--set", "optim.epochs=3", *TARGETS)
OFTEN = ("--set", "optim.checkpoint_every_s=0.001")
KEPT = ("student.safetensors", "class_vectors.safetensors")
CPU = torch.device("cpu")


def lines_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def read_soft(path: str | Path) -> tuple[torch.Tensor, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("class_probabilities"), file.metadata()


def cached() -> list[Path]:
    return sorted(Path("runs/.cache/transductive").glob("*/labels.safetensors"))


def fails(done: Any, code: int, *parts: str) -> None:
    assert (done.code, done.out) == (code, ""), done.err
    assert "Traceback" not in done.err
    for part in parts:
        assert part in done.err


# The file


def test_every_image_of_the_pool_gets_a_line_and_class_probabilities(
    kdedge: Run, trained: Path
) -> None:
    done = kdedge(*WRITE, "-o", LABELS)
    assert done.code == 0, done.err
    assert "40 images of " in done.out
    assert "Wrote labels.jsonl and labels.safetensors\n" in done.out
    assert "Next: kdedge distill r.yaml --set data.pseudo_labels=labels.jsonl" in done.out
    assert "by the teacher -> by the labels: " in done.err
    origin, *labels = lines_of(LABELS)
    z, metadata = read_soft("labels.safetensors")
    assert origin["method"] == "transductive"
    assert {key: origin[key] for key in ("made_by", "class_list", "image_list")} == {
        key: metadata[key] for key in ("made_by", "class_list", "image_list")
    }
    assert (z.shape, z.dtype) == ((40, 4), torch.float16)
    torch.testing.assert_close(z.float().sum(dim=1), torch.ones(40), rtol=0, atol=2e-3)
    images = sorted(path.name for path in Path("pool").glob("*.jpg"))
    assert sorted(one["image"] for one in labels) == images
    names = ("cat", "dog", "red fox", "school bus")
    for one in labels:
        row = z[images.index(one["image"])].float()
        assert names[int(row.argmax())] == one["class"]
        assert one["confidence"] == pytest.approx(float(row.max()), abs=1e-6)


def test_the_same_labels_are_read_again_and_not_found_again(kdedge: Run, trained: Path) -> None:
    assert kdedge(*WRITE, "-o", LABELS).code == 0
    again = kdedge(*WRITE, "-o", "again.jsonl")
    assert "Found in" not in again.err
    for suffix in (".jsonl", ".safetensors"):
        first, second = Path("labels").with_suffix(suffix), Path("again").with_suffix(suffix)
        assert first.read_bytes() == second.read_bytes()
    (file,) = cached()
    file.write_bytes(file.read_bytes()[:-3])
    found = kdedge(*WRITE, "-o", "third.jsonl")
    assert "cut off or damaged" in found.err
    assert Path("third.safetensors").read_bytes() == Path("labels.safetensors").read_bytes()


def test_a_number_of_images_a_class_is_the_most_probable_ones(kdedge: Run, trained: Path) -> None:
    done = kdedge(*WRITE, "-o", LABELS, "--per-class", "3", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["n_images"], found["n_classes"]) == (12, 4)
    assert found["probabilities"] == "labels.safetensors"
    assert found["run"] == "runs/tiny/01"
    assert sum(found["transductive"]["after"].values()) == 40
    train = ("train", "r.yaml", "--method", "coop", "--set", "baseline.settings.n_ctx=3")
    short = ("--set", "baseline.optim={epochs: 1, batch_size: 4, warmup_epochs: 0}")
    assert kdedge(*train, *short, "--set", f"data.pseudo_labels={LABELS}").code == 0


def test_given_labels_stay_and_the_others_right_share_is_said(kdedge: Run, trained: Path) -> None:
    pool = ("--set", "data.unlabeled={folder: labeled}")
    found = json.loads(kdedge(*WRITE, "-o", LABELS, *pool, "--json").out)
    soft = found["transductive"]
    assert (soft["n_images"], soft["n_labeled"]) == (24, 8)  # 4 shots of both base classes
    assert soft["made_from"]["prior_weight"] == 0.5
    z, _ = read_soft("labels.safetensors")
    given = [row for row in z.tolist() if max(row) == 1.0 and sum(row) == 1.0]
    assert len(given) >= 8
    labels = {one["image"]: one["class"] for one in lines_of(LABELS)[1:]}
    right = sum(name == image.split("/")[0] for image, name in labels.items())
    assert found["accuracy_percent"] == pytest.approx(100 * right / 24)
    unknown = ("--set", "student.targets={kind: transductive, labeled_weight: 0}")
    done = kdedge(*WRITE, "-o", "b.jsonl", *pool, *unknown, "--json")
    soft = json.loads(done.out)["transductive"]
    assert (soft["n_labeled"], soft["made_from"]["prior_weight"]) == (0, 1.0)


@pytest.mark.parametrize("features", ["student", "both"])
def test_features_of_the_students_backbone_are_stored_and_used(
    kdedge: Run, trained: Path, features: str
) -> None:
    assert kdedge(*WRITE, "-o", LABELS).code == 0
    setting = f"student.targets={{kind: transductive, features: {features}}}"
    assert kdedge(*WRITE, "-o", "b.jsonl", "--set", setting).code == 0
    assert len(list(Path("runs/.cache/features").glob("*"))) == 2
    assert not torch.equal(read_soft("labels.safetensors")[0], read_soft("b.safetensors")[0])


def test_labels_are_found_again_where_an_input_changes(kdedge: Run, trained: Path) -> None:
    assert kdedge(*WRITE, "-o", LABELS).code == 0
    other = "student.targets={kind: transductive, n_neighbors: 5}"
    assert kdedge(*WRITE, "-o", "b.jsonl", "--set", other).code == 0
    shutil.copy("labeled/cat/0.jpg", "pool/new.jpg")
    assert kdedge(*WRITE, "-o", "c.jsonl").code == 0
    assert len(lines_of("c.jsonl")) == 42
    retaught = ("--set", "teacher.method=zeroshot", "--set", "teacher.settings={}")
    assert kdedge(*WRITE, "-o", "d.jsonl", *retaught).code == 0
    assert len(cached()) == 4
    made_by = {lines_of(f"{name}.jsonl")[0]["made_by"] for name in ("labels", "b", "c", "d")}
    assert len(made_by) == 4
    # How the labels are used makes no other labels
    used = "student.targets={kind: transductive, combine: multiply, weight: 0.1}"
    Path("pool/new.jpg").unlink()
    assert kdedge(*WRITE, "-o", "e.jsonl", "--set", used).code == 0
    assert len(cached()) == 4


# Distillation


def test_a_student_learns_from_its_images_labels(kdedge: Run, trained: Path) -> None:
    loaded = load_recipe("r.yaml", parse_overrides(("teacher.run=runs/tiny/01", TARGETS[1])))
    parts = student_parts(loaded, Workspace(Path("runs"), CPU))
    teacher = open_teacher(RunFolder.open(Path("runs/tiny/01")), parts)
    job = student_job(parts, teaching_of(teacher, parts))
    assert job.labels is not None
    job.labels.make()
    assert kdedge(*WRITE, "-o", LABELS).code == 0
    z, _ = read_soft("labels.safetensors")
    row = {path.name: i for i, path in enumerate(sorted(Path("pool").glob("*.jpg")))}
    batch = next(batches_of(job, 1, 0, targets=job.labels.read))
    assert batch.targets is not None
    assert (batch.targets.how, batch.targets.weight) == ("mix", 0.8)
    expected = z[[row[key] for key in batch.keys]].float()
    assert torch.equal(batch.targets.probabilities, expected)


@pytest.mark.parametrize("combine", ["replace", "mix", "multiply"])
def test_each_way_to_combine_trains_another_student_and_is_recorded(
    kdedge: Run, trained: Path, combine: str
) -> None:
    setting = f"student.targets={{kind: transductive, combine: {combine}, weight: 0.7}}"
    done = kdedge("distill", "r.yaml", "--set", setting)
    assert done.code == 0, done.err
    plain, own = Path("runs/tiny/02"), Path("runs/tiny/03")
    assert (own / KEPT[0]).read_bytes() != (plain / KEPT[0]).read_bytes()
    found = json.loads((own / "targets.json").read_text())
    assert sum(found["before"].values()) == sum(found["after"].values()) == 40
    assert (
        found["made_from"]["class_list"]
        == json.loads((own / "provenance.json").read_text())["hashes"]["class_list"]
    )
    assert "by the teacher -> by the labels: " in (own / "log.txt").read_text()
    assert not (plain / "targets.json").exists()
    assert kdedge("eval", "tiny/03").code == 0


def test_stored_features_of_crops_and_labels_go_together(kdedge: Run, trained: Path) -> None:
    live = kdedge("distill", "r.yaml", *TARGETS)
    assert live.code == 0, live.err
    stored = kdedge("distill", "r.yaml", *TARGETS, "--set", "student.views=2")
    assert stored.code == 0, stored.err
    assert len(list(Path("runs/.cache/teacher_store").glob("*"))) == 1
    assert len(list(Path("runs/.cache/features").glob("*"))) == 1
    assert len(cached()) == 1


def test_the_report_shows_the_classes_before_and_after(kdedge: Run, trained: Path) -> None:
    pytest.importorskip("jinja2")
    assert kdedge("distill", "r.yaml", *TARGETS).code == 0
    done = kdedge("report", "tiny/03")
    assert done.code == 0, done.err
    page = Path("runs/tiny/03/report/01/index.html").read_text()
    for part in ("Soft labels", "Classes before and after", "another class than the teacher"):
        assert part in page
    Path("runs/tiny/03/targets.json").write_text("{}")
    assert kdedge("report", "tiny/03").code == 0


def test_check_looks_at_the_features_that_labels_need(kdedge: Run, trained: Path) -> None:
    done = kdedge("check", "r.yaml", *TARGETS, "--set", "teacher.run=runs/tiny/01")
    assert done.code == 0, done.err
    assert "student: labels" in done.out
    assert cached() == []


# Killed and interrupted


def results(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in KEPT}


@pytest.fixture(scope="session")
def undisturbed(
    blank_project: Path, tmp_path_factory: pytest.TempPathFactory, _forking: Any
) -> dict[str, bytes]:
    """What a distillation with labels leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("labels") / "project"
    shutil.copytree(blank_project, folder)
    process = _forking.start(*DISTILL, cwd=folder)
    assert process.wait() == 0, process.stderr
    return results(folder / "runs/tiny/02")


STAGES = {
    "features": ".cache/features/*",
    "labels": ".cache/transductive/*",
    "training": "tiny/02/checkpoints/e02*",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_in_a_stage_ends_as_an_undisturbed_one(
    project: Path, start: Start, undisturbed: dict[str, bytes], stage: str
) -> None:
    process = start(*DISTILL, *OFTEN)
    process.wait_until(lambda: any((project / "runs").glob(STAGES[stage])))
    time.sleep(random.Random().uniform(0, 0.02))
    process.send(signal.SIGKILL)
    process.wait()
    again = start(*DISTILL, *OFTEN, "--resume")
    assert again.wait() == 0, again.stderr
    assert results(project / "runs/tiny/02") == undisturbed
    assert len(list((project / "runs").glob("tiny/*"))) == 2


def test_labels_that_a_kill_left_half_written_are_written_again(
    project: Path, start: Start, undisturbed: dict[str, bytes]
) -> None:
    process = start(*DISTILL, *OFTEN)
    process.wait_until(lambda: any((project / "runs").glob(STAGES["training"])))
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    (file,) = (project / "runs/.cache/transductive").glob("*/labels.safetensors")
    before = file.read_bytes()
    file.unlink()
    (file.parent / "labels.json").write_text("{")
    again = start(*DISTILL, *OFTEN, "--resume")
    assert again.wait() == 0, again.stderr
    assert file.read_bytes() == before
    assert results(project / "runs/tiny/02") == undisturbed


# What users get wrong


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{kind: transductiv}", "Did you mean transductive?"),
        ("{kind: transductive, neighbors: 3}", "Did you mean n_neighbors?"),
        ("{kind: transductive, combine: multiplied}", "Did you mean multiply?"),
        ("{kind: transductive, weight: 0}", "student.targets.weight must be more than 0"),
        ("{kind: transductive, weight: 1.5}", "student.targets.weight must be at most 1"),
        ("{kind: transductive, features: teachers}", "Did you mean teacher?"),
        ("{weight: 0.5}", "student.targets.kind is missing"),
        ("true", "student.targets must be a mapping"),
    ],
)
def test_a_wrong_key_is_named(kdedge: Run, project: Path, value: str, message: str) -> None:
    fails(kdedge("distill", "r.yaml", "--set", f"student.targets={value}"), 2, message)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-o", "r.yaml"], 2, "r.yaml exists already"),
        (["-o", "labels.safetensors"], 2, "the name of the file of probabilities"),
        (["-o", "x.jsonl", "--per-class", "11"], 3, "There are 40 unlabeled images, but 11 for"),
        (["-o", "x.jsonl", "--set", "data.unlabeled=null"], 2, "no data.unlabeled"),
        (["-o", "x.jsonl", "--set", "student=null"], 2, "no student"),
    ],
)
def test_what_cannot_be_labeled_is_said_before_anything_is_written(
    kdedge: Run, trained: Path, arguments: list[str], code: int, message: str
) -> None:
    fails(kdedge(*WRITE, *arguments), code, message)
    assert cached() == []
    assert not Path("x.jsonl").exists()


def test_probabilities_that_are_there_are_not_overwritten(kdedge: Run, trained: Path) -> None:
    Path("labels.safetensors").write_text("mine")
    fails(kdedge(*WRITE, "-o", LABELS), 2, "labels.safetensors exists already")
    assert Path("labels.safetensors").read_text() == "mine"


def test_other_methods_need_a_number_of_images(kdedge: Run, project: Path) -> None:
    fails(kdedge("pseudo-label", "r.yaml", "-o", LABELS), 2, "Set per_class (--per-class)")


def test_one_image_and_equal_images_are_labeled(kdedge: Run, trained: Path) -> None:
    Path("one").mkdir()
    shutil.copy("pool/0_0.jpg", "one/a.jpg")
    assert kdedge(*WRITE, "-o", LABELS, "--set", "data.unlabeled.folder=one").code == 0
    assert len(lines_of(LABELS)) == 2
    for i in range(5):
        shutil.copy("pool/0_0.jpg", f"one/{i}.jpg")
    done = kdedge(*WRITE, "-o", "b.jsonl", "--set", "data.unlabeled.folder=one")
    assert done.code == 0, done.err
    assert len({one["class"] for one in lines_of("b.jsonl")[1:]}) == 1
    assert "No unlabeled image is predicted as" in done.err


def test_losses_that_read_no_probabilities_are_named(kdedge: Run, project: Path) -> None:
    losses = ("--set", "student.settings.losses={feature: {}}")
    fails(kdedge("distill", "r.yaml", *TARGETS, *losses), 2, "student.targets has no effect")
    assert not Path("runs/tiny").exists()
