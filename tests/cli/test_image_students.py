"""Students that are an image encoder alone, from the recipe to the table of a suite."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]

TIMM = ("student.backbone=timm/test_resnet", "student.weights=timm.safetensors")
TUNED = (*TIMM, "student.settings={tune: full}", "student.optim.lr=0.001")
STUDENT = Path("runs/tiny/02")


@pytest.fixture(autouse=True)
def _weights(project: Path) -> None:
    torch.manual_seed(0)
    state = timm.create_model("test_resnet").state_dict()
    save_file(state, project / "timm.safetensors")


def options(*changes: str) -> list[str]:
    return [part for change in changes for part in ("--set", change)]


def test_a_timm_student_is_checked_trained_measured_and_shown(kdedge: Run, project: Path) -> None:
    assert "timm/test_resnet, " in kdedge("check", "r.yaml", *options(*TUNED)).succeeds().out
    done = kdedge("distill", "r.yaml", "--json", *options(*TUNED))
    assert done.code == 0, done.err
    record = json.loads(done.out)["student"]
    assert record["evaluation"].keys() == {"student", "teacher"}
    assert record["hashes"]["backbone"] != record["hashes"]["weights"]
    state = load_file(STUDENT / "student.safetensors")
    assert {key.split(".")[0] for key in state} == {"visual", "projector", "scale"}

    reached = record["evaluation"]["student"]
    measured = json.loads(kdedge("eval", str(STUDENT), "--json").out)
    assert {key: measured[key] for key in reached} == reached
    assert "zero-shot" not in kdedge("show", str(STUDENT)).succeeds().out
    again = kdedge("distill", "r.yaml", "--resume", *options(*TUNED)).succeeds()
    assert "zero-shot CLIP (teacher's)" in again.out
    assert "zero-shot CLIP (student's)" not in again.out
    assert "runs/tiny/02 is already finished: there is nothing to resume." in again.err

    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), project / "timm.safetensors")
    said = "was trained on another backbone than the current timm/test_resnet"
    kdedge("eval", str(STUDENT)).fails(3, said)


def test_a_timm_student_is_timed_exported_in_every_precision_and_predicts(
    kdedge: Run, quick_machine: None
) -> None:
    pytest.importorskip("onnxruntime")
    assert kdedge("distill", "r.yaml", *options(*TUNED)).code == 0
    quick = ("--seconds", "0.01", "--calls", "3", "--batch", "1,2")
    against = ("--against", "ridge,coop,cocoop")
    done = kdedge("bench", str(STUDENT), *quick, *against, "--format", "json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    models = [row["model"] for row in result["rows"]]
    assert models == ["Ridge regression", "teacher, PromptSRC", "student, PromptKD"]
    left_out = result["left_out"]
    assert left_out["Zero-shot CLIP"].startswith("timm/test_resnet is an image encoder alone, and")
    assert left_out.keys() == {"tiny/02 folded", "Zero-shot CLIP", "CoOp", "CoCoOp"}
    exported = kdedge("export", str(STUDENT), "--int8", "--int8-minutes", "0", "--json")
    assert exported.code == 0, exported.err
    files = {file["name"]: file for file in json.loads(exported.out)["files"]}
    assert files.keys() == {
        *("model.onnx", "model.fp16.onnx"),
        *("model.int8.onnx", "model.int8-cpu.onnx"),
    }
    assert files["model.onnx"]["parity"]["agreement_percent"] == 100
    where = "mean before the first convolution, std in it"
    assert {file["built_with"]["normalized"] for file in files.values()} == {where}
    artifact = str(STUDENT / "artifacts/01")
    assert f"normalization is in the graph: {where}" in kdedge("show", artifact).out
    for name in ("fp32", "int8"):
        done = kdedge("predict", artifact, "test", "--format", "jsonl", "--precision", name)
        assert done.code == 0, done.err
        assert len(done.out.splitlines()) == 20


def test_a_teacher_without_texts_is_timed(kdedge: Run, quick_machine: None) -> None:
    ridge = "{method: ridge, backbone: timm/test_resnet, weights: timm.safetensors"
    both = ("data.split=all", f"teacher={ridge}}}", f"student={ridge}, views: 1}}")
    assert kdedge("distill", "r.yaml", *options(*both)).code == 0
    quick = ("--seconds", "0.01", "--calls", "3", "--batch", "1", "--against", "none")
    done = kdedge("bench", str(STUDENT), *quick, "--format", "json")
    assert done.code == 0, done.err
    models = [row["model"] for row in json.loads(done.out)["rows"]]
    assert models == ["teacher, Ridge regression", "student, Ridge regression"]


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ("distill", TIMM, "timm/test_resnet was not trained with texts: with tune: prompts"),
        (
            "check",
            (*TIMM, "student.settings={tune: full, class_vectors: student}"),
            "timm/test_resnet has no text encoder, so it can only be a student with"
            " its teacher's class vectors",
        ),
        ("train", TIMM, "timm/test_resnet has no text encoder, so"),
        (
            "teach",
            ("teacher.backbone=timm/test_resnet", "teacher.weights=timm.safetensors"),
            "timm/test_resnet has no text encoder, so",
        ),
    ],
)
def test_what_a_timm_model_cannot_be_is_said_before_anything_is_trained(
    kdedge: Run, command: str, changes: tuple[str, ...], message: str
) -> None:
    method = ["--method", "coop"] if command == "train" else []
    kdedge(command, "r.yaml", *method, *options(*changes)).fails(2, message)
    assert list(Path().glob("runs/*/*/teacher.safetensors")) == []


def test_the_image_tower_of_another_clip_is_a_student(kdedge: Run) -> None:
    config = {
        "embed_dim": 24,
        "vision_cfg": {"timm_model_name": "test_convnext", "image_size": 32, "timm_proj": "linear"},
        "text_cfg": {"width": 64, "heads": 1, "layers": 1, "no_causal_mask": True},
    }
    torch.manual_seed(0)
    Path("mobile.json").write_text(json.dumps({**config, "custom_text": True}))
    state = open_clip.CustomTextCLIP(**config).state_dict()
    save_file({key: v.contiguous() for key, v in state.items()}, "mobile.safetensors")
    mobile = ("student.config=mobile.json", "student.weights=mobile.safetensors")
    tuned = options(*mobile, "student.settings.tune=full")
    done = kdedge("distill", "r.yaml", "--json", *tuned)
    assert done.code == 0, done.err
    reached = json.loads(done.out)["student"]["evaluation"]
    assert reached.keys() == {"student", "teacher"}
    measured = json.loads(kdedge("eval", str(STUDENT), "--json").out)
    assert {key: measured[key] for key in reached["student"]} == reached["student"]


@pytest.mark.slow
@pytest.mark.usefixtures("forked_cells")
def test_a_suite_tables_it_without_zero_shot_answers(
    project: Path, kdedge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    row = ", ".join(
        (
            "student.backbone: timm/test_resnet",
            "student.weights: ./timm.safetensors",
            "student.settings: {tune: full}",
        )
    )
    (project / "s.yaml").write_text(
        "name: small\nrecipes: [r.yaml]\nseeds: [1]\n"
        f"methods: [{{name: timm, method: promptkd, set: {{{row}}}}}, zeroshot]\n"
    )
    done = kdedge("suite", "s.yaml", "--json")
    assert done.code == 0, done.err
    cells = {cell["row"]: cell for cell in json.loads(done.out)["cells"]}
    # zero-shot CLIP is the recipe's own student's, which the other row's run has not measured
    assert cells["zeroshot"]["run"] != cells["timm"]["run"]
    with (project / "suites/small/table.csv").open() as file:
        assert {row["method"] for row in csv.DictReader(file) if row["all"]} == set(cells)


def test_what_a_tower_with_dropout_learns_depends_on_the_seed_and_on_no_earlier_draw(
    kdedge: Run, project: Path
) -> None:
    vision = {"timm_model_name": "test_resnet", "timm_drop_path": 0.5, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    vision |= {"timm_pool": "avg", "timm_proj": "linear"}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    (project / "dropping.json").write_text(json.dumps(config))
    state = open_clip.CLIP(**config).state_dict()
    save_file(state, project / "dropping.safetensors")
    dropping = ("student.config=dropping.json", "student.weights=dropping.safetensors")
    for earlier in (1, 2):
        torch.manual_seed(earlier)
        kdedge("distill", "r.yaml", *options(*dropping, *TUNED[2:])).succeeds()
    first, second = sorted(Path("runs/tiny").glob("*/student.safetensors"))
    assert load_file(first).keys() == load_file(second).keys()
    for name, tensor in load_file(first).items():
        torch.testing.assert_close(load_file(second)[name], tensor, rtol=0, atol=0)
