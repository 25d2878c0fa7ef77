"""A job's key: what decides its weights is in it, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdedge.config.load import load_recipe, parse_overrides
from kdedge.records.evaluation import Role
from kdedge.setup.method import choose_method, warn_of_unused_optim
from kdedge.training.job import job_key

RECIPE = """\
name: tiny
classes: [dark, bright]
data: {unlabeled: {folder: pool}, labeled: {folder: labeled}}
teacher: {weights: teacher.pt}
student: {weights: student.pt}
seed: 3
optim: {epochs: 5}
"""
WITHOUT, WITH = {"backbone": "b"}, {"backbone": "b", "teacher_store": "s"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    return path


def key(path: Path, *overrides: str, role: Role = "student", stores: bool = False) -> str:
    loaded = load_recipe(path, parse_overrides(overrides))
    hashes = WITH if stores else WITHOUT
    return job_key(loaded.recipe, choose_method(loaded, role), hashes)


def test_a_seed_of_views_matters_to_a_student_where_it_is_not_the_recipes(recipe: Path) -> None:
    assert key(recipe, "student.view_seed=9") != key(recipe)
    assert key(recipe, "student.view_seed=3") == key(recipe)
    assert key(recipe, "student.view_seed=9", role="teacher") == key(recipe, role="teacher")


def test_stored_views_matter_where_they_are_stored_and_up_to_the_epochs(recipe: Path) -> None:
    views = [key(recipe, f"student.views={n}", stores=True) for n in (1, 4, 5, 6)]
    assert len(set(views)) == 3
    assert views[2] == views[3]
    assert key(recipe, "student.views=1") == key(recipe, "student.views=4")


@pytest.mark.parametrize(
    ("method", "no_effect"),
    [
        ("ridge", ("lr=0.5", "epochs=7", "batch_size=2", "flip=false")),
        ("zeroshot", ("lr=0.5", "precision=bf16")),
    ],
)
def test_settings_without_effect_do_not_matter_and_are_named(
    recipe: Path, caplog: pytest.LogCaptureFixture, method: str, no_effect: tuple[str, ...]
) -> None:
    given = [f"{section}optim.{text}" for text in no_effect for section in ("", "teacher.")]
    method_key = f"teacher.method={method}"
    changed = key(recipe, method_key, *given, role="teacher")
    assert changed == key(recipe, method_key, role="teacher")
    warn_of_unused_optim(load_recipe(recipe, parse_overrides((method_key, *given))), "teacher")
    named = sorted(text.partition("=")[0] for text in given)
    assert [message.partition(" has no effect: ")[0] for message in caplog.messages] == named
    assert {f"{method} " in message for message in caplog.messages} == {True}
    used = key(recipe, method_key, "optim.precision=bf16", role="teacher")
    assert (used != changed) == (method == "ridge")


def test_places_and_devices_matter_to_no_job(recipe: Path) -> None:
    same = ("student.weights=elsewhere.pt", "data.unlabeled.folder=elsewhere", "optim.n_workers=1")
    assert key(recipe, *same) == key(recipe)
    template = "classes={names: [dark, bright], template: 'a bad photo of a {}.'}"
    for other in ("optim.lr=0.5", "data.split=base-to-novel", template):
        assert key(recipe, other) != key(recipe)
