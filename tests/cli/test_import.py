"""Checkpoints of the public code, imported as runs: the same model, or a refusal that says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kdedge as api
from kdedge.clip.class_vectors import load_class_vectors
from kdedge.config.load import load_recipe
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import load_run
from kdedge.setup.workspace import Workspace

Run = Callable[..., Any]

GOLDEN = Path(__file__).parents[1] / "golden"
CPU = torch.device("cpu")


def kinds(keys: Any) -> set[str]:
    return {re.sub(r"resblocks\.\d+", "resblocks.N", key) for key in keys}


@pytest.fixture
def teacher_checkpoint(trained: Path, public_layout: ModuleType) -> Path:
    """model-best.pth.tar, the teacher tiny/01 as PromptSRC's code would have saved it."""
    state = public_layout.promptsrc_checkpoint(
        trained / "teacher.pt", trained / "runs/tiny/01/teacher.safetensors", 2
    )
    golden = json.loads((GOLDEN / "promptsrc_checkpoint_keys.json").read_text())
    assert kinds(state) == kinds(golden)
    return public_layout.save_public(trained / "model-best.pth.tar", state)


@pytest.fixture
def student_checkpoint(trained: Path, public_layout: ModuleType) -> Path:
    """model.pth.tar-20, the student tiny/02 as PromptKD's code would have saved it."""
    state = public_layout.promptkd_checkpoint(
        trained / "student.pt", trained / "runs/tiny/02/student.safetensors"
    )
    golden = json.loads((GOLDEN / "promptkd_checkpoint_keys.json").read_text())
    assert kinds(state) == kinds(golden)
    return public_layout.save_public(trained / "model.pth.tar-20", state)


IMPORT_TEACHER = (
    *("import", "model-best.pth.tar", "--as", "promptsrc", "--name", "public"),
    *("--weights", "teacher.pt", "--classes", "classes.txt"),
)
IMPORT_STUDENT = (
    *("import", "model.pth.tar-20", "--as", "promptkd", "--name", "public"),
    *("--weights", "student.pt", "--teacher", "tiny/01"),
)
ON_TEST = ("--set", "data.test.folder=test", "--set", "data.split=base-to-novel", "--json")


@pytest.mark.usefixtures("teacher_checkpoint")
@pytest.mark.parametrize("exact", [(), ("--exact",)], ids=["prompts only", "exact"])
def test_an_imported_promptsrc_teacher_has_the_same_class_vectors_and_accuracy(
    kdedge: Run, trained: Path, exact: tuple[str, ...]
) -> None:
    done = kdedge(*IMPORT_TEACHER, *exact).succeeds()
    assert "differs from teacher.pt by at most 0 (" in done.err
    assert done.out.endswith("Next: kdedge show runs/public/01\n")
    ours = load_class_vectors(trained / "runs/tiny/01/class_vectors.safetensors")
    theirs = load_class_vectors(trained / "runs/public/01/class_vectors.safetensors")
    assert theirs.class_names == ours.class_names
    assert torch.equal(theirs.vectors, ours.vectors)
    measured = json.loads(kdedge("eval", "public", *ON_TEST).out)
    assert measured == {
        "run": "runs/public/01",
        **json.loads((trained / "runs/tiny/01/eval.json").read_text())["teacher"],
    }
    Path("runs/public").rename("runs/moved")
    moved = json.loads(kdedge("eval", "moved", *ON_TEST).out)
    assert moved == {**measured, "run": "runs/moved/01"}
    shown = kdedge("show", "moved").out
    assert "imported from" in shown
    assert "promptsrc" in shown


@pytest.mark.usefixtures("teacher_checkpoint")
def test_an_imported_teacher_teaches_what_its_original_teaches(kdedge, trained) -> None:
    assert kdedge(*IMPORT_TEACHER).code == 0
    assert kdedge("distill", "r.yaml", "--set", "teacher.run=runs/public/01").code == 0
    # The tensors alone: a file also says which teacher run it learned from
    first, second = (load_file(f"runs/tiny/0{n}/student.safetensors") for n in (2, 3))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.usefixtures("student_checkpoint")
def test_an_imported_promptkd_student_has_the_same_logits_and_accuracy(kdedge, trained) -> None:
    done = kdedge(*IMPORT_STUDENT, "--json")
    assert json.loads(done.out) == {"path": "runs/public/01", "epoch": 20}
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        _logits(trained / "runs/public/01", images), _logits(trained / "runs/tiny/02", images)
    )
    measured = json.loads(kdedge("eval", "public", *ON_TEST).out)
    original = json.loads((trained / "runs/tiny/02/eval.json").read_text())["student"]
    assert measured == {"run": "runs/public/01", **original}


def _logits(path: Path, images: Tensor) -> Tensor:
    run = RunFolder.open(path)
    return load_run(run, Workspace(run.root, CPU)).logits(images)


@pytest.mark.usefixtures("teacher_checkpoint", "student_checkpoint")
@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ((*IMPORT_TEACHER, "--weights", "student.pt"), 3, "in the loaded CLIP"),
        ((*IMPORT_STUDENT, "--weights", "teacher.pt"), 3, "in the loaded CLIP"),
        (("import", "model-best.pth.tar", *IMPORT_STUDENT[2:]), 3, "looks like a PromptSRC"),
        (("import", "model.pth.tar-20", *IMPORT_TEACHER[2:]), 3, "PromptKD student"),
        ((*IMPORT_STUDENT, "--exact"), 2, "--exact has no effect on a promptkd checkpoint"),
        ((*IMPORT_TEACHER, "--teacher", "tiny"), 2, "--teacher has no effect on a promptsrc"),
        (("import", "teacher.pt", *IMPORT_TEACHER[2:]), 3, "has no state_dict"),
        (IMPORT_TEACHER[:-2], 2, "has no class names.\n  Give it with --classes."),
        (IMPORT_STUDENT[:-2], 2, "has no class vectors.\n  Give it with --teacher."),
        ((*IMPORT_STUDENT, "--teacher", "tinny"), 2, "Did you mean tiny"),
        ((*IMPORT_TEACHER, "--name", "my teacher"), 2, '"my teacher" cannot be the name of a'),
    ],
)
def test_an_import_that_does_not_fit_says_why_and_leaves_no_run(
    kdedge: Run, command: tuple[str, ...], code: int, message: str
) -> None:
    kdedge(*command).fails(code, message)
    assert not list(Path("runs").glob("public/*"))


def test_python_takes_files_of_the_home_folder_and_runs_too(
    teacher_checkpoint: Path, student_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(Path.cwd()))
    file = f"~/{teacher_checkpoint.rename('model (1).pth')}"
    with pytest.raises(api.DataError, match="are one class name"):
        api.import_checkpoint(file, "promptsrc", weights="teacher.pt", classes=["cat", "cat"])
    classes = "~/classes.txt"
    teacher = api.import_checkpoint(file, "promptsrc", weights="teacher.pt", classes=classes)
    assert (teacher.name, teacher.role) == ("model-1--promptsrc/01", "teacher")
    student = api.import_checkpoint(
        student_checkpoint, "promptkd", weights="student.pt", teacher=api.open_run("tiny/01")
    )
    assert student.role == "student"


@pytest.mark.usefixtures("teacher_checkpoint")
def test_an_import_that_fails_at_its_class_vectors_leaves_no_run(kdedge: Run) -> None:
    Path("long.txt").write_text(f"cat\n{'7 ' * 90}\n")
    kdedge(*IMPORT_TEACHER[:-1], "long.txt").fails(3, "this CLIP has only")
    assert not list(Path("runs").glob("public/*"))


def test_each_tower_has_as_many_prompted_layers_as_the_file(
    kdedge: Run, trained: Path, public_layout: ModuleType
) -> None:
    state = public_layout.promptsrc_checkpoint(
        trained / "teacher.pt", trained / "runs/tiny/01/teacher.safetensors", 2
    )
    del state["text_encoder.transformer.resblocks.1.VPT_shallow"]
    public_layout.save_public(trained / "model-best.pth.tar", state)
    assert kdedge(*IMPORT_TEACHER).code == 0
    settings = RunFolder.open(trained / "runs/public/01").read_provenance().settings
    assert (settings["prompt_depth_text"], settings["prompt_depth_vision"]) == (1, 2)


@pytest.mark.parametrize("command", [IMPORT_TEACHER, (*IMPORT_TEACHER, "--exact"), IMPORT_STUDENT])
@pytest.mark.usefixtures("teacher_checkpoint", "student_checkpoint")
def test_an_import_on_other_weights_of_the_same_sizes_is_refused(
    kdedge: Run,
    write_clip: Callable[..., Path],
    tiny_sizes: dict[str, int],
    command: tuple[str, ...],
) -> None:
    sizes = {**tiny_sizes, "vision_width": 128, "vision_layers": 4, "embed_dim": 40}
    others = write_clip(tiny_sizes if command is IMPORT_STUDENT else sizes, seed=5)
    done = kdedge(*command, "--weights", str(others))
    assert done.code == 3
    assert f"{command[1]} was not trained on {others}: its backbone differs by " in done.err
    assert not list(Path("runs").glob("public/*"))


@pytest.mark.parametrize(("factor", "code"), [(1.001, 0), (1.05, 3)])
def test_an_import_allows_for_the_rounding_of_averages_and_no_more(
    kdedge: Run,
    teacher_checkpoint: Path,
    public_layout: ModuleType,
    trained: Path,
    factor: float,
    code: int,
) -> None:
    state = public_layout.promptsrc_checkpoint(
        trained / "teacher.pt", trained / "runs/tiny/01/teacher.safetensors", 2
    )
    state["image_encoder.proj"] = state["image_encoder.proj"] * factor
    public_layout.save_public(teacher_checkpoint, state)
    done = kdedge(*IMPORT_TEACHER)
    assert done.code == code, done.err
    assert f"{factor - 1:.2g} (relative, at visual.proj)" in done.out + done.err


@pytest.mark.usefixtures("student_checkpoint")
def test_an_import_takes_the_word_on_the_activation_and_keeps_it(kdedge, trained) -> None:
    state = torch.load("student.pt", weights_only=True)
    sizes = ("input_resolution", "context_length", "vocab_size")
    save_file({key: value for key, value in state.items() if key not in sizes}, "plain.safetensors")
    plain = (*IMPORT_STUDENT, "--weights", "plain.safetensors")
    assert "it is unknown whether" in kdedge(*plain).err
    assert kdedge(*plain, "--quick-gelu").code == 0
    assert load_recipe("runs/public/01/recipe.yaml").recipe.student.quick_gelu is True
    assert kdedge(*plain, "--gelu").code == 0
    assert load_recipe("runs/public/02/recipe.yaml").recipe.student.quick_gelu is False
