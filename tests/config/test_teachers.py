"""The recipe's `teachers` and `ensemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import dump_recipe, load_recipe
from kdedge.config.paths import check_paths
from kdedge.errors import DataError, RecipeError
from kdedge.setup.teachers import probabilities_of, teacher_recipes

HEAD = """\
name: x
classes: [cat, dog]
data: {}
student: {backbone: kdedge-demo-student, weights: builtin}
"""
CLIP = "{backbone: kdedge-demo-teacher, weights: builtin}"
LISTED = f"""{HEAD}ensemble: {{weights: entropy, tau: 0.5}}
teachers:
  - {{backbone: kdedge-demo-teacher, weights: builtin,
     settings: {{prompt_depth_text: 1}}, optim: {{lr: 0.01}}}}
  - {{run: runs/x/01}}
  - probabilities:
      unlabeled: pool.csv
"""


def load(folder: Path, text: str, *overrides: str) -> Any:
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml", overrides)


def test_a_list_is_written_back_as_it_was_read(tmp_path: Path) -> None:
    recipe = load(tmp_path, LISTED).recipe
    again = load(tmp_path, dump_recipe(recipe)).recipe
    assert again == recipe
    assert again.teachers[0].optim.model_fields_set == {"lr"}
    assert again.teachers[2].probabilities.unlabeled == tmp_path / "pool.csv"


def test_each_teacher_is_a_recipe_of_its_own_with_its_lines(tmp_path: Path) -> None:
    loaded = load(tmp_path, LISTED)
    first, second = teacher_recipes(loaded)
    assert first.recipe.teacher == loaded.recipe.teachers[0]
    assert second.recipe.teacher.run == tmp_path / "runs/x/01"
    assert (first.recipe.teachers, first.recipe.ensemble) == (None, None)
    assert first.lines.where(("teacher", "settings")).endswith("r.yaml:8")
    assert second.lines.where(("teacher", "run")).endswith("r.yaml:9")
    assert list(probabilities_of(loaded)) == [2]
    written = load(tmp_path, dump_recipe(second.recipe)).recipe
    assert written.teacher.run == tmp_path / "runs/x/01"


def test_a_single_teacher_stays_as_it_is(tmp_path: Path) -> None:
    loaded = load(tmp_path, f"{HEAD}teacher: {CLIP}\n")
    assert teacher_recipes(loaded) == [loaded]
    assert "teachers" not in dump_recipe(loaded.recipe)
    assert "ensemble" not in dump_recipe(loaded.recipe)


def test_files_of_a_list_have_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"r\.yaml:9: teachers\.1\.run: there is no folder") as told:
        check_paths(load(tmp_path, LISTED))
    assert "r.yaml:11: teachers.2.probabilities.unlabeled: there is no file" in str(told.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"teacher: {CLIP}\nteachers: [{CLIP}]", "has teacher and teachers; remove one of them"),
        (f"teacher: {{optim: {{lr: 1}}}}\nteachers: [{CLIP}]", "has teacher and teachers"),
        (f"teacher: {CLIP}\nensemble: {{}}", "has ensemble without teachers"),
        ("teachers: []", r"teachers must be at least 1 entries long"),
        ("teachers: {}", "teachers must be a list"),
        ("teachers: [{}]", r"teachers.0 needs backbone, config, or weights"),
        ("teachers: [{probabilities: {unlabeled: a}}]", "has probabilities as its first teacher"),
        (
            f"teachers: [{CLIP}, {{probabilities: {{unlabeled: a}}, run: b}}]",
            r"teachers.1 has probabilities and run; remove one of them",
        ),
        (f"teachers: [{CLIP}, {{probabilities: {{}}}}]", "probabilities.unlabeled is missing"),
        (f"teachers: [{CLIP}]\nensemble: {{weights: best}}", "weights must be equal, entropy or"),
        (f"teachers: [{CLIP}]\nensemble: {{tau: 0}}", "tau must be more than 0"),
        (f"official: true\nteachers: [{CLIP}, {CLIP}]", "official: true and several teachers"),
        (f"teacher: {{probabilities: {{unlabeled: a}}, {CLIP[1:]}", "is not a known key"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, f"{HEAD}{text}\n")
