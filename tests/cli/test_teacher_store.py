"""Distilling from the teacher store: equal to the live teacher, shared, killed, and told of."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.runs.folder import RunFolder
from kdedge.runs.model import RunModel
from kdedge.setup.workspace import Workspace
from kdedge.training.run_job import run_job
from kdedge.training.student import student_job, with_teacher

pytestmark = pytest.mark.usefixtures("trained")

CPU = torch.device("cpu")
TAUGHT = ("r.yaml", "--set", "teacher.run=runs/tiny/01")


class Counted(RunModel):
    """A trained teacher that sees each image by itself, in float16, and counts how often it does.

    By itself: in batches of other sizes a product's last bit may differ.
    """

    def __init__(self, teacher: RunModel) -> None:
        vars(self).update(vars(teacher), n_images=0)

    def teacher_features(self, images: Tensor, *given: Any) -> Tensor:
        self.n_images += len(images)
        rows = [super(Counted, self).teacher_features(image[None], *given) for image in images]
        return torch.cat(rows).half().float()


def distilled(*overrides: str) -> tuple[RunFolder, Counted]:
    """Distills from tiny/01 with a counted teacher."""
    loaded = load_recipe("r.yaml", parse_overrides(("teacher.run=runs/tiny/01", *overrides)))
    student, _ = student_job(loaded, Workspace(Path("runs"), CPU))
    teacher = Counted(student.teacher)
    return run_job(with_teacher(student, teacher), resume=False), teacher


def stores() -> list[Path]:
    return sorted(Path("runs/.cache/teacher_store").glob("*"))


@pytest.mark.parametrize("own", [(), ("student.view_seed=9",)], ids=["seed", "view_seed"])
def test_as_many_views_as_epochs_give_the_live_runs_weights_bit_for_bit(
    own: tuple[str, ...],
) -> None:
    live, asked = distilled(*own)
    stored, warm = distilled("student.views=2", *own)
    assert live.weights.read_bytes() == stored.weights.read_bytes()
    assert asked.n_images == 2 * 40
    assert warm.n_images == 2 * 40


def test_fewer_views_are_gone_through_in_turn_and_more_than_epochs_are_not_made() -> None:
    distilled("student.views=1", "student.optim.epochs=3")
    (store,) = stores()
    assert [path.name for path in sorted(store.glob("view-*"))] == ["view-0001"]
    once, _ = distilled("student.views=2", "student.optim.epochs=1")
    again, _ = distilled("student.views=50", "student.optim.epochs=1")
    assert once.weights.read_bytes() == again.weights.read_bytes()
    assert [path.name for path in sorted(store.glob("view-*"))] == ["view-0001"]


def test_a_warm_store_serves_other_seeds_losses_and_class_lists() -> None:
    shared = ("student.views=1", "student.view_seed=1")
    distilled(*shared)
    Path("fewer.txt").write_text("dog\nschool bus\n")
    for change in (
        ("seed=2",),
        ("student.settings.losses={feature: {}}", "student.optim.lr=0.001"),
        ("student.settings.losses={feature_l1: {}}", "student.optim.epochs=1"),
        ("classes.file=fewer.txt", "data.split=all", "data.test=null"),
    ):
        _, teacher = distilled(*shared, *change)
        assert teacher.n_images == 0, change
    assert len(stores()) == 1


def test_an_image_that_was_added_is_the_only_one_that_the_teacher_sees(
    trained: Path, kdedge: Any, draw_image: Callable[..., None]
) -> None:
    distilled("student.views=1")
    draw_image(trained / "pool/new.jpg", label=1, number=99)
    command = ("check", *TAUGHT, "--set", "student.views=1")
    assert "1 of 41 crops to compute" in kdedge(*command).out
    _, teacher = distilled("student.views=1")
    assert teacher.n_images == 1
    again, _ = distilled("student.views=1", "seed=3", "student.view_seed=1")
    shutil.rmtree(trained / "runs/.cache/teacher_store")
    alone, teacher = distilled("student.views=1", "seed=3", "student.view_seed=1", "name=alone")
    assert teacher.n_images == 41
    assert again.weights.read_bytes() == alone.weights.read_bytes()
    draw_image(trained / "pool/0_00.jpg", label=1, number=98)  # before most others
    done = kdedge("distill", *TAUGHT, "--set", "student.views=1", "--set", "student.view_seed=1")
    assert "Computing 41 of 42 crops." in done.err
    assert len(stores()) == 1


def test_teach_stores_what_distill_then_finds(trained: Path, kdedge: Any) -> None:
    options = ("r.yaml", "--set", "student.views=2")
    done = kdedge("teach", *options, "--store").succeeds()
    (store,) = stores()
    size = "40 images x 2 views x 40 dimensions x 2 bytes = 6.4 kB"
    assert "using runs/tiny/01, trained with the same settings and data" in done.err
    assert done.out.startswith(f"Teacher store {store}: {size}\nNext: kdedge distill r.yaml")
    assert f"{size}. Computing 80 of 80 crops." in done.err
    distilled = kdedge("distill", *options)
    assert f"{size}. It is complete: nothing is computed." in distilled.err
    log = (trained / "runs/tiny/03/log.txt").read_text()
    assert "It is complete: nothing is computed." in log
    hashes = json.loads((trained / "runs/tiny/03/provenance.json").read_text())["hashes"]
    assert hashes["teacher_store"].startswith(store.name)


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--store", "student.views is 0: the teacher runs in every step"), ("--ray", "add --store")],
)
def test_what_teach_cannot_store_it_says(kdedge: Any, flag: str, message: str) -> None:
    kdedge("teach", "r.yaml", flag).fails(2, message)
    assert stores() == []


def test_check_counts_the_teacher_once_and_writes_nothing(kdedge: Any) -> None:
    options = (*TAUGHT, "--set", "student.views=2")
    cold = kdedge("check", *options).succeeds()
    size = r"40 images x 2 views x 40 dimensions x 2 bytes = 6\.4 kB"
    line = rf"^student: teacher store +{size}; 80 of 80 crops to compute, about \d+ s$"
    assert re.search(line, cold.out, re.MULTILINE)
    assert stores() == []
    assert kdedge("teach", "r.yaml", "--set", "student.views=2", "--store").code == 0
    warm = kdedge("check", *options)
    assert re.search(rf"^student: teacher store +{size}; complete$", warm.out, re.MULTILINE)


def test_check_tells_that_the_disk_cannot_hold_the_store(
    kdedge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=6000))
    done = kdedge("check", *TAUGHT, "--set", "student.views=2")
    done.fails(7, "has 6.0 kB free, and the teacher store needs 9.6 kB more")
