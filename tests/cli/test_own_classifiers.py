"""CLIP-PR and LaFTer, which train a classifier of their own: from the recipe to the device."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("project")

Run = Callable[..., Any]
SETTINGS = {"clip_pr": "{n_hidden: 8}", "lafter": "{n_ctx_vision: 2, n_text_steps: 5}"}
SHORT = "baseline.optim={epochs: 2, batch_size: 8}"
SENTENCES = {
    "dog": ["it barks.", "a wet nose."],
    "cat": ["it purrs."],
    "school bus": ["yellow, with wheels."],
    "red fox": ["fur of red."],
}
TEXTS = "classes={file: classes.txt, texts: texts.json}"
METHODS = pytest.mark.parametrize("method", SETTINGS)


def options(method: str, *more: str) -> list[str]:
    texts = (f"baseline.settings={SETTINGS[method]}", SHORT, *more)
    return ["--method", method, *(part for text in texts for part in ("--set", text))]


def train(kdedge: Run, method: str, *more: str) -> dict[str, Any]:
    done = kdedge("train", "r.yaml", *options(method, *more), "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)["baseline"]


def write_texts(sentences: Any) -> None:
    Path("texts.json").write_text(json.dumps(sentences, indent=1))


@METHODS
def test_it_is_trained_on_unlabeled_images_alone_and_measured_alike_again(
    kdedge: Run, method: str
) -> None:
    record = train(kdedge, method, "data.labeled=null")
    assert record["summary"]["training"]["steps"] == 10  # 40 images, 8 a step, 2 epochs
    reached = record["evaluation"]["baseline"]
    assert set(record["evaluation"]) == {"baseline", "zeroshot"}
    assert reached["split"] == "base-to-novel"
    assert reached["novel"] is not None
    measured = json.loads(kdedge("eval", "--json").out)
    assert {key: measured[key] for key in reached} == reached
    assert re.search(rf"^{method} \(baseline\) +\d", kdedge("eval").out, re.MULTILINE)


@METHODS
def test_classes_go_by_name_and_others_are_not_known(kdedge: Run, method: str) -> None:
    train(kdedge, method)
    before = json.loads(kdedge("eval", "--json").out)["per_class"]
    Path("classes.txt").write_text("school bus\nred fox\ncat\ndog\n")
    assert json.loads(kdedge("eval", "--json").out)["per_class"] == before
    Path("classes.txt").write_text("cat\ndog\nred fox\nlorry\n")
    Path("test/school bus").rename("test/lorry")
    kdedge("eval").fails(
        3, "1 class names have no tensors in runs/tiny/01/baseline", "first 'lorry'"
    )


# Texts


def test_sentences_are_learned_and_are_not_needed_to_measure(kdedge: Run) -> None:
    write_texts(SENTENCES)
    templates, own = train(kdedge, "lafter"), train(kdedge, "lafter", TEXTS)
    assert "class_texts" not in templates["hashes"]
    assert "class_texts" in own["hashes"]
    first, second = (Path(f"runs/tiny/0{n}/baseline.safetensors") for n in (1, 2))
    assert first.read_bytes() != second.read_bytes()
    Path("texts.json").unlink()
    assert kdedge("eval", "tiny/02").code == 0
    # Other sentences are another run
    write_texts({**SENTENCES, "cat": ["it meows."]})
    done = kdedge("train", "r.yaml", *options("lafter", TEXTS), "--resume").succeeds()
    assert "There is no interrupted run" in done.err
    write_texts(SENTENCES)
    done = kdedge("train", "r.yaml", *options("lafter", TEXTS), "--resume")
    assert "runs/tiny/02 is already finished: there is nothing to resume." in done.err


# To the device, and to a student


def test_lafter_is_exported_and_answers_as_it_was_measured(kdedge: Run) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    reached = train(kdedge, "lafter")["evaluation"]["baseline"]
    done = kdedge("export", "tiny/01", "--set", "export.batch=1")  # is traced sooner
    assert done.code == 0, done.err
    record = json.loads(Path("runs/tiny/01/artifacts/01/artifact.json").read_text())
    (file,) = record["files"]
    assert file["parity"]["agreement_percent"] == 100
    assert file["parity"]["max_softmax_distance"] < 1e-5
    assert file["parity"]["accuracy_percent"] == reached["all"]


def test_lafter_teaches_a_student(kdedge: Run) -> None:
    teacher = ["teacher.method=lafter", f"teacher.settings={SETTINGS['lafter']}"]
    given = [part for text in teacher for part in ("--set", text)]
    done = kdedge("distill", "r.yaml", *given, "--set", "data.labeled=null", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["student"]["evaluation"]["student"]["n_images"] == 20


def test_clip_pr_is_no_teacher_and_cannot_be_exported(kdedge: Run) -> None:
    reason = "clip_pr computes its logits without class vectors, so it cannot"
    pytest.importorskip("onnx")
    train(kdedge, "clip_pr")
    for command, what in (("export", "be exported"), ("bench", "be measured by itself")):
        kdedge(command, "tiny/01").fails(2, f"{reason} {what}", "bench RUN --against clip_pr")
    assert "kdedge bench" not in kdedge("report", "tiny/01").out
    ridge = ("--set", "student.method=ridge", "--set", "student.settings={}")
    done = kdedge("distill", "r.yaml", "--set", "teacher={run: runs/tiny/01}", *ridge)
    done.fails(2, f"{reason} teach a student")
    shutil.rmtree("runs")
    given = ("--set", "teacher.method=clip_pr", "--set", "teacher.settings={}")
    for command in ("check", "teach", "distill"):
        kdedge(command, "r.yaml", *given).fails(2, reason)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


# What users get wrong


@METHODS
@pytest.mark.parametrize(
    ("override", "code", "parts"),
    [
        ("data.unlabeled=null", 2, ("no data.unlabeled", "{} learns from unlabeled images")),
        ("data.unlabeled={folder: empty}", 3, ("empty",)),
        ("classes=[cat]", 2, ("at least 2",)),
    ],
)
def test_what_it_cannot_learn_from_makes_no_run(
    kdedge: Run, method: str, override: str, code: int, parts: tuple[str, ...]
) -> None:
    Path("empty").mkdir()
    done = kdedge("train", "r.yaml", *options(method, override))
    done.fails(code, *(part.format(method) for part in parts))
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


@pytest.mark.parametrize(
    ("sentences", "message"),
    [
        ({**SENTENCES, "lorry": ["big."]}, 'texts.json: "lorry" is not in the class list.'),
        ({**SENTENCES, "cat": ["purr " * 90]}, "A text needs 92 tokens"),
    ],
)
def test_a_wrong_file_of_texts_is_refused_before_a_run_is_made(
    kdedge: Run, sentences: Any, message: str
) -> None:
    write_texts(sentences)
    kdedge("train", "r.yaml", *options("lafter", TEXTS)).fails(3, message)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached
