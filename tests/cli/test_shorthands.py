"""`--epochs`, `--batch-size`, `--lr` and `--seed`: short for `--set` of a model's keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import load_recipe

Run = Callable[..., Any]


def provenance(run: str) -> Any:
    return json.loads(Path("runs", run, "provenance.json").read_text())


def test_distill_sets_the_students(kdedge: Run, trained: Path) -> None:
    done = kdedge("distill", "r.yaml", "--epochs", "1", "--lr", "0.5", "--batch-size", "20")
    assert done.code == 0, done.err
    assert "runs/tiny/01" in done.err  # the teacher is the one from before
    training = provenance("tiny/03")["summary"]["training"]
    assert (training["epochs"], training["steps"]) == (1, 2)
    student = load_recipe("runs/tiny/03/recipe.yaml").recipe.student
    assert student.optim.lr == 0.5


def test_teach_sets_the_teachers_and_passes_them_on(kdedge: Run, project: Path) -> None:
    (project / "r.yaml").write_text(
        (project / "r.yaml").read_text().replace("student:\n", "  optim: {epochs: 9}\nstudent:\n")
    )
    done = kdedge("teach", "r.yaml", "--epochs", "1", "--seed", "3")
    assert done.code == 0, done.err
    made = provenance("tiny/01")
    assert (made["summary"]["training"]["epochs"], made["seed"]) == (1, 3)
    following = "Next: kdedge distill r.yaml --set teacher.optim.epochs=1 --set seed=3\n"
    assert done.out.endswith(following)


def test_train_sets_the_baselines_whatever_its_method_declares(kdedge: Run, project: Path) -> None:
    done = kdedge("train", "r.yaml", "--method", "coop", "--epochs", "1", "--batch-size", "8")
    assert done.code == 0, done.err
    training = provenance("tiny/01")["summary"]["training"]
    assert (training["epochs"], training["steps"]) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", "0"), "student.optim.epochs must be at least 1, got 0."),
        (("--lr", "nan"), "student.optim.lr must be a finite number, got nan."),
        (
            ("--temperature", "2"),
            "Set a key of the recipe with --set KEY=VALUE; `kdedge schema` lists the keys.",
        ),
        (("--epoch", "2"), "Did you mean"),
    ],
)
def test_what_cannot_be_set_is_told(
    kdedge: Run, project: Path, options: tuple[str, ...], message: str
) -> None:
    done = kdedge("distill", "r.yaml", *options)
    done.fails(2, message)
    assert not any(Path("runs").glob("[!.]*"))  # hashes of weights may be cached
