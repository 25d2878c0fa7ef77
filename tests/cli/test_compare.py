"""`kdedge compare`: two artifacts on the same images, whatever the images and the class lists."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import kdedge as package
from kdedge.errors import GateError, RecipeError
from kdedge.runtime.artifact import load_artifact
from kdedge.runtime.cpu_choice import CpuChoice, CpuMachine, keep_choice

pytestmark = pytest.mark.usefixtures("work")

Run = Callable[..., Any]
COLORS = {"red": (250, 10, 10), "green": (0, 230, 0), "blue": (0, 10, 240), "dark thing": (3, 0, 0)}


@contextlib.contextmanager
def changed(device: Any, **parts: Any) -> Iterator[None]:
    """Context in which the artifacts that are made have other weights or names."""
    before = {name: getattr(device, name) for name in parts}
    vars(device).update(parts)
    try:
        yield
    finally:
        vars(device).update(before)


@pytest.fixture
def work(device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: an old artifact, a new one that takes green for blue, and images."""
    device.write_artifact(tmp_path / "old")
    with changed(device, WEIGHT=device.WEIGHT[:, [0, 2, 1, 3]]):
        device.write_artifact(tmp_path / "new")
    for name, color in COLORS.items():
        for number in range(3):
            shade = tuple(max(0, value - 2 * number) for value in color)
            device.write_image(tmp_path / f"pics/{name.replace(' ', '_')}/{number}.png", shade)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(kdedge: Run, *arguments: str) -> Any:
    return json.loads(kdedge("compare", *arguments, "--json").succeeds().out)


def test_answers_and_scores_are_those_that_predict_gives(kdedge: Run) -> None:
    found = compared(kdedge, "old", "new", "pics")
    answers = []
    for which in ("old", "new"):
        done = kdedge("predict", which, "pics", "--format", "csv")
        answers.append({row["image"]: row for row in csv.DictReader(io.StringIO(done.out))})
    old, new = answers
    changed = [key for key in old if old[key]["class"] != new[key]["class"]]
    assert [one["image"] for one in found["changed"]] == changed
    for one in found["changed"]:
        for which, rows in (("old", old), ("new", new)):
            row = rows[one["image"]]
            assert one[which] == row["class"]
            assert f"{one[f'{which}_score_percent']:.4f}" == row["score_percent"]
    assert len(changed) == 6
    assert (found["n_images"], found["n_agree"], found["agreement_percent"]) == (12, 6, 50.0)
    assert found["classes"] == {name: [3, 3] for name in COLORS}
    assert found["labeled"] is None


def test_with_labels_the_new_one_is_tested_and_the_gate_ends_in_exit_code_6(kdedge: Run) -> None:
    done = kdedge("compare", "old", "new", "pics", "--labels").succeeds()
    assert "old 100.00 %, new 50.00 % on 12 images with labels" in done.out
    assert "The new one is worse: of the 6 images" in done.out
    gated = kdedge("compare", "old", "new", "pics", "--labels", "--require-no-worse")
    assert (gated.code, gated.out) == (6, done.out)
    assert "The new one is worse" in gated.err
    assert kdedge("compare", "new", "old", "pics", "--labels", "--require-no-worse").code == 0
    with pytest.raises(GateError, match="The new one is worse"):
        package.compare("old", "new", "pics", labels=True, require_no_worse=True)
    kdedge("compare", "old", "new", "pics", "--require-no-worse").fails(2, "Add --labels")
    with pytest.raises(RecipeError, match="Add labels"):
        package.compare("old", "new", "pics", require_no_worse=True)


def test_files_of_one_precision_are_compared_or_the_verdict_says_so(
    work: Path, kdedge: Run, device: Any
) -> None:
    old = load_artifact(work / "old")
    path = shutil.copy(old.path / "model.onnx", old.path / "model.int8-cpu.onnx")
    int8 = device.entry(path, precision="int8", gate="passed")
    choice = CpuChoice(
        CpuMachine.this(), int8.name, int8.sha256, 1, (), {}, "2026-01-02T03:04:05+00:00"
    )
    keep_choice(old.with_files(int8), choice)
    assert kdedge("predict", "old", "pics").err.count("model.int8-cpu.onnx") == 1
    found = compared(kdedge, "old", "new", "pics")
    assert (found["old"]["precision"], found["new"]["precision"]) == ("fp32", "fp32")
    found = compared(kdedge, "old", "old", "pics")
    assert (found["old"]["precision"], found["new"]["precision"]) == ("int8", "int8")
    done = kdedge("compare", "old/model.int8-cpu.onnx", "new", "pics", "--labels")
    assert "The old file is int8 and the new one fp32." in done.out
    unlabeled = package.compare("old/model.int8-cpu.onnx", "new", "pics")
    assert unlabeled.verdict == ""


def test_a_single_file_of_an_artifact_and_its_record_name_it(kdedge: Run) -> None:
    found = compared(kdedge, "old/model.onnx", "new/artifact.json", "pics")
    assert (found["old"]["file"], found["new"]["file"]) == ("old/model.onnx", "new/model.onnx")
    assert found["n_agree"] == 6
    for wrong, said in (
        ("old/nothing.onnx", "does not exist"),
        ("pics/red/0.png", "is not an artifact, nor a run with one"),
        ("old/README.md", "has no model file 'README.md'; it has model.onnx"),
    ):
        Path("old/README.md").write_text("a card")
        kdedge("compare", "new", wrong, "pics").fails(3, said)


def test_a_class_list_in_another_order_changes_nothing(
    device: Any, work: Path, kdedge: Run
) -> None:
    order = [3, 1, 0, 2]
    names = tuple(device.CLASS_NAMES[i] for i in order)
    parts = {"WEIGHT": device.WEIGHT[:, order], "BIAS": device.BIAS[order]}
    with changed(device, CLASS_NAMES=names, **parts):
        device.write_artifact(work / "ordered")
    found = compared(kdedge, "old", "ordered", "pics", "--labels")
    assert (found["agreement_percent"], found["changed"]) == (100.0, [])
    assert found["labeled"]["new_accuracy_percent"] == 100.0
    assert found["mean_absolute_score_difference"] < 1e-3


def test_a_number_is_a_position_in_the_old_list_even_if_the_new_one_has_more_classes(
    device: Any, work: Path, kdedge: Run
) -> None:
    with changed(
        device,
        CLASS_NAMES=device.CLASS_NAMES[:3],
        WEIGHT=device.WEIGHT[:, :3],
        BIAS=device.BIAS[:3],
    ):
        device.write_artifact(work / "smaller")
    (work / "list.csv").write_text("pics/blue/0.png,2\npics/dark_thing/0.png,dark thing\n")
    found = compared(kdedge, "smaller", "new", "list.csv", "--labels")
    assert (found["labeled"]["n_labeled"], found["labeled"]["n_left_out"]) == (1, 1)
    (work / "list.csv").write_text("pics/dark_thing/0.png,3\n")
    kdedge("compare", "smaller", "new", "list.csv", "--labels").fails(
        3, 'list.csv:1: "3" is not a class name', "or a position from 0 to 2."
    )


def test_other_class_names_are_said_and_compared_on_the_shared_ones(
    work: Path, kdedge: Run
) -> None:
    artifact = load_artifact(work / "new")
    names = ("red", "green", "sky", "dark thing")
    dataclasses.replace(artifact, class_names=names).save()
    done = kdedge("compare", "old", "new", "pics", "--labels")
    assert "3 classes that both have\nonly the old one has blue\n" in done.out
    assert "only the new one has sky\n" in done.out
    assert "old 100.00 %, new 66.67 % on 9 images with labels; 3 images of classes" in done.out
    found = compared(kdedge, "old", "new", "pics")
    # The new one takes green for sky, and blue for green: none of these is on shared names
    assert (found["n_with_unshared_class"], found["n_agree"], found["agreement_percent"]) == (
        6,
        6,
        100.0,
    )
    assert len(found["changed"]) == 6
    others = ("a", "b", "c", "d")
    dataclasses.replace(artifact, class_names=others).save()
    kdedge("compare", "old", "new", "pics").fails(
        3, "no name in common. Old: red, green, blue, and 1 more. New: a, b, c, and 1 more."
    )


def test_unreadable_images_are_counted_and_listed_and_none_is_an_error(
    work: Path, kdedge: Run
) -> None:
    (work / "pics/broken.jpg").write_bytes(b"no image")
    odd = b"pics/odd-\xff\x1b[2J.jpg"  # no UTF-8, and a terminal's control characters
    Path(os.fsdecode(odd)).write_bytes(b"no image")
    assert "pics/odd-\\xff\\x1b[2J.jpg: not a" in kdedge("compare", "old", "new", "pics").out
    Path(os.fsdecode(odd)).unlink()
    found = compared(kdedge, "old", "new", "pics")
    assert (found["n_images"], [one["image"] for one in found["unreadable"]]) == (
        12,
        ["pics/broken.jpg"],
    )
    assert "12 images, and 1 unreadable;" in kdedge("compare", "old", "new", "pics").out
    alone = kdedge("compare", "old", "new", "pics/broken.jpg")
    assert alone.code == 3
    assert "None of 1 image can be read.\n  The first is pics/broken.jpg: " in alone.err
    (work / "empty").mkdir()
    assert kdedge("compare", "old", "new", "empty").code == 3
    assert kdedge("compare", "old", "new").code == 2
    assert kdedge("compare", "old", "new", "-").code == 2


def test_one_image_is_enough_and_an_artifact_agrees_with_itself(kdedge: Run) -> None:
    done = kdedge("compare", "old", "old", "pics/red/0.png").succeeds()
    assert "agreement 100.00 %: 1 of 1 image" in done.out
    assert "No prediction has changed." in done.out
    assert "is compared with itself" in done.err


def test_a_head_without_scores_is_compared_by_its_answers(
    device: Any, work: Path, kdedge: Run
) -> None:
    device.write_artifact(work / "ranks", head="argmax")
    found = compared(kdedge, "ranks", "new", "pics")
    assert (found["n_agree"], found["mean_score_difference"]) == (6, None)
    assert found["changed"][0]["old_score_percent"] is None
    assert found["changed"][0]["new_score_percent"] > 0
    done = kdedge("compare", "ranks", "new", "pics")
    assert "an artifact's head is argmax, without scores" in done.out


def test_a_model_that_gives_nan_has_no_answer_and_counts_as_changed(
    device: Any, work: Path, kdedge: Run
) -> None:
    device.write_artifact(work / "nan", factor=float("nan"))
    found = compared(kdedge, "old", "nan", "pics", "--labels")
    assert (found["n_agree"], len(found["changed"])) == (0, 12)
    assert found["n_nonfinite"] == 12
    assert {image["new"] for image in found["changed"]} == {None}
    assert found["labeled"]["new_accuracy_percent"] == 0.0
    assert "12 predictions with NaN" in kdedge("compare", "old", "nan", "pics").out


def test_labels_come_from_lists_and_shards_too_and_unknown_ones_are_errors(
    work: Path, kdedge: Run
) -> None:
    lines = [f"pics/{name.replace(' ', '_')}/0.png,{name}" for name in COLORS]
    (work / "list.csv").write_text("\n".join(lines) + "\npics/red/1.png,\n")
    found = compared(kdedge, "old", "new", "list.csv", "--labels")
    assert (found["n_images"], found["labeled"]["n_labeled"]) == (5, 4)
    assert found["labeled"]["new_accuracy_percent"] == 50.0
    (work / "wrong.csv").write_text("pics/red/0.png,crimson\n")
    wrong = kdedge("compare", "old", "new", "wrong.csv", "--labels")
    assert wrong.code == 3
    assert 'wrong.csv:1: "crimson" is not a class name' in wrong.err
    assert kdedge("compare", "old", "new", "wrong.csv").code == 0  # labels are not read
    shutil.copytree("pics", "more")
    Path("more/red").rename("more/crimson")
    kdedge("compare", "old", "new", "more", "--labels").fails(3, "crimson")
    kdedge("compare", "old", "new", "pics/red/0.png", "--labels").fails(3, "No image has a label")
    pytest.importorskip("webdataset")
    with tarfile.open("shard.tar", "w") as tar:
        for name, data in (("0.png", Path("pics/blue/0.png").read_bytes()), ("0.cls", b"2")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert compared(kdedge, "old", "new", "shard.tar", "--labels")["changed"][0]["label"] == "blue"


def test_the_images_are_the_same_whatever_the_two_preparations_are(
    device: Any, work: Path, kdedge: Run
) -> None:
    rng = np.random.default_rng(0)
    for number in range(6):
        pixels = rng.integers(0, 256, (37 + 5 * number, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(work / f"{number}.png")
    artifact = load_artifact(work / "new")
    squash = dataclasses.replace(artifact.preprocess, resize_mode="squash")
    dataclasses.replace(artifact, preprocess=squash).save()
    named = [f"{number}.png" for number in range(6)]
    found = package.compare("old", "new", *named, batch=2)
    for which in ("old", "new"):
        alone = {one.key: one.top[0] for one in package.predict(which, *named, batch=2).classified}
        for one in found.changed:
            answer = getattr(one, which), getattr(one, f"{which}_score_percent")
            assert answer == alone[one.image]
    assert len(found.changed) > 0
    with pytest.raises(RecipeError, match="batch size is 99"):
        package.compare("old", "new", *named, batch=99)


def test_standard_input_is_refused_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda is_one=is_terminal: is_one))
        with pytest.raises(RecipeError, match="Standard input is not taken here"):
            package.compare("old", "new", ["-"])
