"""`official: true`: what it writes into a recipe, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdedge.config.load import dump_recipe, load_recipe, parse_overrides, shipped_recipes
from kdedge.config.optim_spec import resolve_optim
from kdedge.config.recipe import OFFICIAL
from kdedge.errors import RecipeError

RECIPE = """\
name: r
classes: [a, b]
data: {unlabeled: {folder: pool}, test: {folder: test}}
teacher: {weights: t.pt}
student: {weights: s.pt, settings: {losses: {kl: {weight: 200.0}}}, optim: {epochs: 3}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE)
    return file


def test_the_public_codes_ways_are_written_out(path: Path) -> None:
    recipe = load_recipe(path, {"official": True}).recipe
    assert recipe.teacher is not None
    assert recipe.student.settings == {
        "losses": {"kl": {"weight": 200.0}},
        "float32_losses": False,
    }
    student = resolve_optim(recipe.optim, recipe.student.optim)
    teacher = resolve_optim(recipe.optim, recipe.teacher.optim)
    assert (student.precision, student.selection, student.epochs) == ("fp16-unscaled", "test", 3)
    assert (teacher.precision, teacher.selection) == ("fp16-unscaled", "last")


def test_a_setting_of_promptkd_is_written_for_no_other_student(path: Path) -> None:
    ridge = {"official": True, "student.method": "ridge", "student.settings": {}}
    assert load_recipe(path, ridge).recipe.student.settings == {}


@pytest.mark.parametrize("override", [[], ["official=true"]])
def test_a_resolved_recipe_loads_as_an_equal_one(
    path: Path, override: list[str], tmp_path: Path
) -> None:
    recipe = load_recipe(path, parse_overrides(override)).recipe
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again).recipe == recipe
    assert ("official" in again.read_text()) == bool(override)


@pytest.mark.parametrize(
    "name", sorted(set(shipped_recipes()) - {"own-images", "demo", "demo-promptkd"})
)
def test_every_recipe_of_a_benchmark_set_can_be_official(name: str) -> None:
    plain = load_recipe(shipped_recipes()[name]).recipe.model_dump()
    recipe = load_recipe(shipped_recipes()[name], {"official": True}).recipe.model_dump()
    for key, value in OFFICIAL.items():
        found, before = recipe, plain
        for part in key:
            found, before = found[part], (before or {}).get(part)
        assert found == value
        assert before != value


def test_what_recipes_have_for_a_steady_training_is_taken_out(path: Path) -> None:
    models = ("teacher", "student", "baseline")
    options = [f"{model}.optim.clip_grad_norm=1" for model in models]
    for official, expected in (("false", 1.0), ("true", None)):
        options += ["optim.clip_grad_norm=3", f"official={official}"]
        recipe = load_recipe(path, parse_overrides(options)).recipe
        for spec in (recipe.teacher, recipe.student, recipe.baseline):
            assert resolve_optim(recipe.optim, spec.optim).clip_grad_norm == expected
    assert recipe.optim.clip_grad_norm is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optim.precision", "fp32"),
        ("teacher.optim.precision", "bf16"),
        ("student.optim.selection", "last"),
        ("student.settings.float32_losses", "true"),
    ],
)
def test_a_key_that_says_other_than_official_is_refused(path: Path, key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"official: true, which sets {key} to \S+, but sets it"):
        load_recipe(path, parse_overrides(["official=true", f"{key}={value}"]))


@pytest.mark.parametrize("key", ["optim", "student.optim", "teacher.optim", "baseline.optim"])
def test_no_epoch_is_chosen_on_test_images_unless_official(path: Path, key: str) -> None:
    with pytest.raises(RecipeError, match="chosen on test images makes the test worthless"):
        load_recipe(path, parse_overrides([f"{key}.selection=test"]))


def test_what_is_no_recipe_is_refused_as_ever(path: Path) -> None:
    for override in ("optim=3", "student=3", "student.optim=3", "official=yes"):
        with pytest.raises(RecipeError, match=override.partition("=")[0]):
            load_recipe(path, parse_overrides(["official=true", override]))
