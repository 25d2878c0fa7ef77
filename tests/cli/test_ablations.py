"""PromptKD's ablations as a user runs them: one key of the recipe each, from training to export."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import load_recipe, parse_overrides
from kdedge.paper.suite.plan import row_sees

pytestmark = pytest.mark.usefixtures("trained")

Run = Callable[..., Any]

STUDENT = Path("runs/tiny/03")
LABELS = "student.settings.labeled_weight=2"


def distill(kdedge: Run, *changes: str) -> Any:
    """Trains one more student of the stored teacher, or another one's."""
    overrides = [part for change in changes for part in ("--set", change)]
    return kdedge("distill", "r.yaml", "--json", *overrides)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (
            ["tune=projector", "labeled_weight=1", "losses={feature_l1: {}, kl: {weight: 100}}"],
            {"projector"},
        ),
        (
            ["tune=lora", "lora={rank: 4, projections: [q, v, mlp]}", "projector_depth=3"],
            {"lora", "projector"},
        ),
        (
            [
                *("tune=prompts+lora", "merge_tokens=5"),
                *("class_vectors=student", "prompt_depth_text=2"),
            ],
            {"visual_prompts", "text_prompts", "lora"},
        ),
        (
            ["tune=full", "depth=2", "merge_tokens=8", "projector_depth=1"],
            {"visual", "projector"},
        ),
    ],
)
def test_an_ablation_is_trained_measured_again_and_exported(
    kdedge: Run, changes: list[str], kept: set[str]
) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    changes = [f"student.settings.{change}" for change in changes]
    done = distill(kdedge, *changes, "student.optim.lr=0.0001")
    assert done.code == 0, done.err
    reached = json.loads(done.out)["student"]["evaluation"]["student"]
    state = load_file(STUDENT / "student.safetensors")
    assert {key.split(".")[0] for key in state} == kept
    measured = json.loads(kdedge("eval", str(STUDENT), "--json").out)
    assert {key: measured[key] for key in reached} == reached

    exported = kdedge("export", str(STUDENT), *options("export.batch=1"))  # is traced sooner
    assert exported.code == 0, exported.err
    (file,) = json.loads((STUDENT / "artifacts/01/artifact.json").read_text())["files"]
    assert file["parity"]["agreement_percent"] == 100
    assert file["parity"]["accuracy_percent"] == pytest.approx(measured["all"])


def test_own_class_vectors_are_stored_with_what_made_them(kdedge: Run) -> None:
    own = ("student.settings.class_vectors=student", "student.settings.prompt_depth_text=2")
    assert distill(kdedge, LABELS, *own).code == 0
    assert "labeled_list" in json.loads((STUDENT / "provenance.json").read_text())["hashes"]
    shared = load_class_vectors(Path("runs/tiny/02/class_vectors.safetensors"))
    vectors = load_class_vectors(STUDENT / "class_vectors.safetensors")
    assert (shared.vectors.shape[1], vectors.vectors.shape[1]) == (40, 24)
    assert vectors.vectors_hash != shared.vectors_hash
    teacher = load_class_vectors(Path("runs/tiny/01/class_vectors.safetensors"))
    assert shared.vectors_hash == teacher.vectors_hash
    # A new name is not asked of the teacher
    Path("more.txt").write_text("cat\nzebra\n")
    done = kdedge("export", str(STUDENT), "--classes", "more.txt", "--output", "more")
    done.fails(
        3,
        "1 of 2 class names have no stored vector, first 'zebra', and this student",
        "Use names among the 4 of runs/tiny/03/class_vectors.safetensors, or dis",
    )
    assert not Path("more").exists()


def test_a_student_that_is_no_vit_learns_and_is_exported(kdedge: Run) -> None:
    config = {
        "embed_dim": 24,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2},
    }
    torch.manual_seed(0)
    Path("resnet.json").write_text(json.dumps(config))
    save_file(open_clip.CLIP(**config).state_dict(), "resnet.safetensors")
    files = ("student.config=resnet.json", "student.weights=resnet.safetensors")
    own = ("student.quick_gelu=false", "student.settings.tune=full")
    done = distill(kdedge, *files, *own)
    assert done.code == 0, done.err
    reached = json.loads(done.out)["student"]["evaluation"]["student"]
    measured = json.loads(kdedge("eval", str(STUDENT), "--json").out)
    assert {key: measured[key] for key in reached} == reached
    exported = kdedge("export", str(STUDENT), "--json", *options("export.batch=1"))
    assert exported.code == 0, exported.err
    (file,) = json.loads(exported.out)["files"]
    assert (file["gate"], file["parity"]["agreement_percent"]) == ("passed", 100)


# Labels beside the teacher, low-rank changes and moving averages


EVERYTHING = (
    LABELS,
    "student.settings.tune=prompts+lora",
    "student.optim.ema_decay=0.9",
    "student.optim.layer_decay=0.8",
)


def options(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def test_a_killed_run_with_all_of_them_ends_with_the_same_bytes(start: Callable[..., Any]) -> None:
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
    assert parts == {"visual_prompts", "lora", "projector"}
    assert {key.rpartition(".")[2] for key in state if key.startswith("lora.")} == {"a", "b"}


def test_a_student_sees_labels_where_it_learns_from_them() -> None:
    teacher = ("teacher.method=zeroshot", "teacher.settings={}")
    for changes, sees in (((), False), ((LABELS,), True)):
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
        (["student.settings.tune=lora", "student.settings.lora.blocks=[7]"], 2, "blocks 0 to 2"),
        (
            ["student.settings={tune: lora, lora: {blocks: [0, 2]}, depth: 2}"],
            2,
            "lora.blocks is [0, 2], but the image encoder has the blocks 0 to 1.",
        ),
        (["student.optim.layer_decay=0.9"], 2, "no layer of an image encoder is trained"),
        (
            ["student.settings.losses.kl=3"],
            2,
            "--set student.settings.losses.kl must be a mapping (key: value), got 3.",
        ),
        (["student.settings.losses={}"], 2, "must name at least one loss, such as kl: {}."),
        (
            ["student.settings.tune=all"],
            2,
            "must be prompts, projector, full, lora or prompts+lora",
        ),
        (
            ["data.unlabeled={folder: pool, per_class: 3}"],
            3,
            "data.unlabeled.per_class is 3, and drawing images per class needs their labels:",
        ),
    ],
)
def test_what_cannot_work_is_said_and_leaves_no_run(
    kdedge: Run, changes: list[str], code: int, message: str
) -> None:
    shutil.copytree("labeled/cat", "one/cat", ignore=shutil.ignore_patterns("[1-9].jpg"))
    kdedge("distill", "r.yaml", *options("teacher.run=runs/tiny/01", *changes)).fails(code, message)
    assert not STUDENT.exists()


# How many unlabeled images a student learns from, counted by class


def test_a_number_of_images_per_class_is_drawn_by_seed_from_a_source_with_labels(
    kdedge: Run,
) -> None:
    pool = "data.unlabeled={folder: labeled, per_class: 3}"
    records = {}
    for number, changes in enumerate(
        [(pool,), (pool, "optim.lr=0.004"), (pool, "seed=2"), ("data.unlabeled={folder: labeled}",)]
    ):
        run = Path(json.loads(distill(kdedge, *changes).succeeds().out)["student"]["path"])
        records[number] = json.loads((run / "provenance.json").read_text())
    images = [records[number]["hashes"]["unlabeled_list"] for number in range(4)]
    assert images[0] == images[1]
    assert len(set(images)) == 3
    steps = [records[number]["summary"]["training"]["steps"] for number in range(4)]
    assert steps == [2 * 3, 2 * 3, 2 * 3, 2 * 6]  # epochs times images / 4
