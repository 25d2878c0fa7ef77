"""A run that trains and chooses as PromptKD's public code does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.runs.folder import RunFolder
from kdedge.runs.model import load_run
from kdedge.setup.device import choose_device
from kdedge.setup.workspace import Workspace
from kdedge.training.loop.precision import published_in_half

Run = Callable[..., Any]
OPTIONS = ("--set", "official=true", "--set", "student.optim.epochs=3")


def epochs_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "validation_percent" in row]


@pytest.mark.parametrize("split", ["base-to-novel", "all"])
@pytest.mark.usefixtures("project")
def test_the_student_is_that_of_the_epoch_that_is_best_on_test_images(
    kdedge: Run, split: str
) -> None:
    done = kdedge("distill", "r.yaml", *OPTIONS, "--set", f"data.split={split}")
    assert done.code == 0, done.err
    run = Path("runs/tiny/02")
    record = json.loads((run / "provenance.json").read_text())
    found = json.loads((run / "eval.json").read_text())
    scores = [row["validation_percent"] for row in epochs_of(run)]
    training = record["summary"]["training"]
    assert len(scores) == 3
    assert (training["kept"], training["best_epoch"]) == ("epoch", scores.index(max(scores)) + 1)
    assert found["student"]["selection"] == "test"
    assert found["student"]["base" if split == "base-to-novel" else "all"] == max(scores)
    assert found["zeroshot"]["selection"] == "last"
    assert record["official"] is True
    assert "test_list" in record["hashes"]


@pytest.mark.usefixtures("project")
def test_official_results_are_marked_where_they_are_shown(kdedge: Run) -> None:
    assert kdedge("distill", "r.yaml").code == 0
    done = kdedge("distill", "r.yaml", *OPTIONS)
    assert "teacher, official" in done.out
    assert "student, official: its epoch was chosen on the test images" in done.out
    shown = kdedge("show", "tiny/04").out
    assert "official, as in the public code" in shown
    assert "student, official: its epoch was chosen on the test images" in shown
    assert "student, official: its epoch" in kdedge("eval", "tiny/04").out
    for command in (("show", "tiny/02"), ("eval", "tiny/02")):
        assert "official" not in kdedge(*command).out


@pytest.mark.usefixtures("project")
def test_what_the_public_code_keeps_in_half_is_in_half(kdedge: Run) -> None:
    assert kdedge("distill", "r.yaml", *OPTIONS).code == 0
    run = RunFolder.open(Path("runs/tiny/02"))
    module: Any = load_run(run, Workspace(run.root, choose_device("cpu"))).method.module
    for parameter in published_in_half(module):
        assert (parameter == parameter.half().float()).all()
    assert (module.visual_prompts != module.visual_prompts.half().float()).any()


@pytest.mark.usefixtures("project")
def test_an_official_run_without_test_images_cannot_choose(kdedge: Run) -> None:
    for command in ("check", "distill"):
        done = kdedge(command, "r.yaml", *OPTIONS, "--set", "data.test=null")
        assert done.code == 2
        assert (
            "The recipe has no data.test, and selection: test chooses the epoch on it" in done.err
        )
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached


@pytest.mark.usefixtures("project")
def test_an_official_run_with_novel_test_images_alone_cannot_choose(kdedge: Run) -> None:
    Path("novel.csv").write_text(
        "path,label\n" + "".join(f"{path},red fox\n" for path in Path("test").glob("red fox/*.jpg"))
    )
    done = kdedge("check", "r.yaml", *OPTIONS, "--set", "data.test={list: novel.csv}")
    assert done.code == 3
    assert "data.test has no image of a base class" in done.err


@pytest.mark.usefixtures("project")
def test_a_resumed_official_run_goes_on_as_it_would_have(kdedge: Run) -> None:
    assert kdedge("distill", "r.yaml", *OPTIONS).code == 0
    again = kdedge("distill", "r.yaml", *OPTIONS, "--resume")
    assert again.code == 0
    assert "is already finished: there is nothing to resume" in again.err
