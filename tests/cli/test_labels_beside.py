"""Labels beside the teacher, low-rank changes and moving averages, as a user runs them."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import load_recipe, parse_overrides
from kdedge.suite.plan import row_sees

Run = Callable[..., Any]

STUDENT = Path("runs/tiny/03")
TWO_HEADS = ("student.settings.labeled_weight=2", "student.settings.label_head_share=0.5")
EVERYTHING = (
    *TWO_HEADS,
    "student.settings.tune=prompts+lora",
    "student.optim.ema_decay=0.9",
    "student.optim.layer_decay=0.8",
    "student.optim.epochs=3",
)


def options(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def test_a_killed_run_with_all_of_them_ends_with_the_same_bytes(
    trained: Path, start: Callable[..., Any]
) -> None:
    whole, killed = STUDENT, Path("runs/tiny/04")
    line = ("distill", "r.yaml", *options(*EVERYTHING))
    assert start(*line).wait() == 0
    often = options("optim.checkpoint_every_s=0.001")
    process = start(*line, *often)
    process.wait_until(lambda: any(killed.glob("checkpoints/e02-s*.safetensors")))
    process.send(signal.SIGKILL)
    process.wait()
    again = start(*line, *often, "--resume")
    assert again.wait() == 0, again.stderr
    for name in ("student.safetensors", "class_vectors.safetensors"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes()
    state = load_file(whole / "student.safetensors")
    parts = {key.split(".")[0] for key in state}
    assert parts == {"visual_prompts", "lora", "projector", "label_head"}
    assert {key.rpartition(".")[2] for key in state if key.startswith("lora.")} == {"a", "b"}


def test_the_mixed_class_vectors_are_the_students_own(kdedge: Run, trained: Path) -> None:
    done = kdedge("distill", "r.yaml", *options(*TWO_HEADS))
    assert done.code == 0, done.err
    own = load_class_vectors(STUDENT / "class_vectors.safetensors")
    teachers = load_class_vectors(Path("runs/tiny/01/class_vectors.safetensors"))
    assert own.provenance != teachers.provenance
    same = [bool(torch.equal(*pair)) for pair in zip(own.vectors, teachers.vectors, strict=True)]
    assert same == [False, False, True, True]  # labels are of the base half

    lists = json.loads((STUDENT / "provenance.json").read_text())["hashes"]
    assert "labeled_list" in lists
    Path("more.txt").write_text("cat\nzebra\n")
    refused = kdedge("export", str(STUDENT), "--classes", "more.txt", "--output", "more")
    refused.fails(3, "this student made its own")


def test_a_student_sees_labels_where_it_learns_from_them(trained: Path) -> None:
    teacher = ("teacher.method=zeroshot", "teacher.settings={}")
    for changes, sees in (((), False), (TWO_HEADS[:1], True)):
        loaded = load_recipe("r.yaml", parse_overrides([*teacher, *changes]))
        assert row_sees(loaded, "student").labels is sees


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (
            ["data.labeled=null", "student.settings.labeled_weight=1"],
            2,
            "The recipe has no data.labeled, and a student learns from labeled images.",
        ),
        (["data.labeled={folder: one}", "student.settings.labeled_weight=1"], 3, "images of 1 of"),
        (["student.settings.labeled_weight=-1"], 2, "must be at least 0, got -1"),
        (["student.settings.label_head_share=0.5"], 2, "label_head_share without labeled_weight"),
        (["student.settings.tune=lora", "student.settings.lora.rank=0"], 2, "at least 1"),
        (["student.settings.tune=lora", "student.settings.lora.rank=99"], 2, "64 inputs"),
        (["student.settings.tune=lora", "student.settings.lora.alpha=0"], 2, "more than 0"),
        (
            ["student.settings.tune=lora", "student.settings.lora.projections=[w]"],
            2,
            "must be q, k, v, out or mlp",
        ),
        (["student.settings.tune=lora", "student.settings.lora.blocks=[7]"], 2, "0 to 2"),
        (["student.settings.lora.rank=2"], 2, "have lora with tune: prompts"),
        (["student.optim.ema_decay=1"], 2, "less than 1"),
        (["student.optim.ema_decay=0"], 2, "more than 0"),
        (["student.optim.layer_decay=0.9"], 2, "no layer of an image encoder is trained"),
    ],
)
def test_what_cannot_work_is_said_and_leaves_no_run(
    kdedge: Run, trained: Path, changes: list[str], code: int, message: str
) -> None:
    shutil.copytree("labeled/cat", "one/cat", ignore=shutil.ignore_patterns("[1-9].jpg"))
    done = kdedge("distill", "r.yaml", *options("teacher.run=runs/tiny/01", *changes))
    done.fails(code, message)
    assert not STUDENT.exists()


def test_a_teacher_that_averages_itself_refuses_a_moving_average(
    kdedge: Run, trained: Path
) -> None:
    done = kdedge("teach", "r.yaml", *options("optim.ema_decay=0.9"))
    done.fails(2, "itself averages its trained tensors")
    assert not STUDENT.exists()
