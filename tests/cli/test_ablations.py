"""PromptKD's ablations as a user runs them: one key of the recipe each, from training to export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from kdedge.clip.class_vectors import load_class_vectors

Run = Callable[..., Any]

STUDENT = Path("runs/tiny/03")


def distill(kdedge: Run, *changes: str) -> Any:
    """Trains one more student of the stored teacher."""
    overrides = [part for change in changes for part in ("--set", change)]
    return kdedge("distill", "r.yaml", "--json", *overrides)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        (["tune=projector"], {"projector"}),
        (["tune=full", "projector_depth=1"], {"visual", "projector"}),
        (["projector_depth=3"], {"visual_prompts", "projector"}),
        (["class_vectors=student", "prompt_depth_text=2"], {"visual_prompts", "text_prompts"}),
        (["tune=lora", "lora={rank: 4, projections: [q, v, mlp]}"], {"lora", "projector"}),
        (["tune=prompts+lora"], {"visual_prompts", "lora", "projector"}),
        (["merge_tokens=5"], {"visual_prompts", "projector"}),
        (["tune=full", "depth=2", "merge_tokens=8"], {"visual", "projector"}),
        (["labeled_weight=1"], {"visual_prompts", "projector"}),
        (
            ["labeled_weight=1", "label_head_share=0.5"],
            {"visual_prompts", "projector", "label_head"},
        ),
        (["losses={feature_l1: {}, kl: {weight: 100}}"], {"visual_prompts", "projector"}),
    ],
)
def test_an_ablation_is_trained_measured_again_and_exported(
    kdedge: Run, trained: Path, changes: list[str], kept: set[str]
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

    exported = kdedge("export", str(STUDENT))
    assert exported.code == 0, exported.err
    (file,) = json.loads((STUDENT / "artifacts/01/artifact.json").read_text())["files"]
    assert file["parity"]["agreement_percent"] == 100
    assert file["parity"]["accuracy_percent"] == pytest.approx(measured["all"])


def test_own_class_vectors_are_stored_with_what_made_them(kdedge: Run, trained: Path) -> None:
    own = ("student.settings.class_vectors=student", "student.settings.prompt_depth_text=2")
    assert distill(kdedge, *own).code == 0
    shared = load_class_vectors(Path("runs/tiny/02/class_vectors.safetensors"))
    vectors = load_class_vectors(STUDENT / "class_vectors.safetensors")
    assert (shared.vectors.shape[1], vectors.vectors.shape[1]) == (40, 24)
    assert vectors.provenance != shared.provenance
    teacher = load_class_vectors(Path("runs/tiny/01/class_vectors.safetensors"))
    assert shared.provenance == teacher.provenance


def test_own_class_vectors_of_a_new_name_are_not_asked_of_the_teacher(
    kdedge: Run, trained: Path
) -> None:
    own = ("student.settings.class_vectors=student", "student.settings.prompt_depth_text=2")
    assert distill(kdedge, *own).code == 0
    Path("more.txt").write_text("cat\nzebra\n")
    done = kdedge("export", str(STUDENT), "--classes", "more.txt", "--output", "more")
    done.fails(
        3,
        "1 of 2 class names have no stored vector, first 'zebra', and this student",
        "Use names among the 4 of runs/tiny/03/class_vectors.safetensors, or dis",
    )
    assert not Path("more").exists()


def test_a_loss_that_is_not_the_divergence_has_no_weight_per_image(
    kdedge: Run, trained: Path
) -> None:
    assert distill(kdedge, "student.settings.losses={feature: {}}").code == 0
    record = json.loads((STUDENT / "provenance.json").read_text())
    assert "kd_weight_per_image" not in record
    before = json.loads(Path("runs/tiny/02/provenance.json").read_text())
    assert before["kd_weight_per_image"] == 250.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("losses={fature: {}}", "losses.fature is not a known key.\n  Did you mean feature?"),
        (
            "losses.kl.temprature=2",
            "kl.temprature is not a known key.\n  Did you mean temperature?",
        ),
        ("losses.kl=3", "--set student.settings.losses.kl must be a mapping (key: value), got 3."),
        ("losses={}", "--set student.settings.losses must name at least one loss, such as kl: {}."),
        ("projector_depth=4", "--set student.settings.projector_depth must be at most 3, got 4."),
        (
            "tune=all",
            "--set student.settings.tune must be prompts, projector, full, lora or prompts+lora",
        ),
    ],
)
def test_a_setting_that_cannot_be_is_a_mistake_in_the_recipe(
    kdedge: Run, trained: Path, change: str, message: str
) -> None:
    done = distill(kdedge, f"student.settings.{change}")
    done.fails(2, message)


@pytest.fixture
def resnet_student() -> tuple[str, ...]:
    """Overrides that put a small ResNet CLIP in the student's place."""
    import torch
    from open_clip import CLIP

    config = {
        "embed_dim": 24,
        "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "patch_size": None},
        "text_cfg": {"width": 64, "heads": 1, "layers": 2},
    }
    torch.manual_seed(0)
    Path("resnet.json").write_text(json.dumps(config))
    save_file(CLIP(**config).state_dict(), "resnet.safetensors")
    return (
        "student.config=resnet.json",
        "student.weights=resnet.safetensors",
        "student.quick_gelu=false",
    )


@pytest.mark.parametrize("tune", ["projector", "full"])
def test_a_student_that_is_no_vit_learns_and_is_exported(
    kdedge: Run, trained: Path, resnet_student: tuple[str, ...], tune: str
) -> None:
    done = distill(kdedge, *resnet_student, f"student.settings.tune={tune}")
    assert done.code == 0, done.err
    reached = json.loads(done.out)["student"]["evaluation"]["student"]
    measured = json.loads(kdedge("eval", str(STUDENT), "--json").out)
    assert {key: measured[key] for key in reached} == reached
    exported = kdedge("export", str(STUDENT), "--json")
    assert exported.code == 0, exported.err
    (file,) = json.loads(exported.out)["files"]
    assert (file["gate"], file["parity"]["agreement_percent"]) == ("passed", 100)


def test_prompts_for_a_student_that_is_no_vit_end_before_a_teacher_is_trained(
    kdedge: Run, project: Path, resnet_student: tuple[str, ...]
) -> None:
    for command in ("check", "distill"):
        overrides = [part for change in resnet_student for part in ("--set", change)]
        done = kdedge(command, "r.yaml", *overrides)
        done.fails(
            2,
            "resnet takes no visual prompts: its image encoder is a ModifiedResNet",
            "tune: projector",
        )
    assert list(Path().glob("runs/*/*/teacher.safetensors")) == []
