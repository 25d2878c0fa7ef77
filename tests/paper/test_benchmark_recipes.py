"""The shipped recipes of the benchmark sets, and the suites over them, say what was published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from kdedge.config.load import load_recipe, shipped_recipes
from kdedge.config.recipe import Recipe
from kdedge.data.benchmark_sets import list_benchmark_sets
from kdedge.paper.benchmark_sets import benchmark_set
from kdedge.paper.suite.spec import AVERAGE, Suite, check_names, load_suite
from kdedge.records.evaluation import harmonic_mean
from kdedge.setup.method import choose_method

SUITES = Path(__file__).parents[2] / "benchmarks" / "suites"
VARIANTS = {"imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r"}
BASE_TO_NOVEL = sorted(set(list_benchmark_sets()) - VARIANTS)
CROSS = sorted(set(BASE_TO_NOVEL) - {"imagenet"})


def shipped(name: str) -> Recipe:
    return load_recipe(shipped_recipes()[name]).recipe


def rest(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe does not name its set or follow from it."""
    values = recipe.model_dump(exclude={"name", "classes", "data"})
    del values["student"]["settings"]["losses"]["kl"]["weight"]
    return values


@pytest.mark.parametrize("name", list_benchmark_sets())
def test_every_set_has_a_recipe_of_its_name_and_template(name: str) -> None:
    recipe = shipped(name)
    data = recipe.data
    assert recipe.name == name
    assert (recipe.classes.benchmark, recipe.classes.template) == (
        name,
        benchmark_set(name).template,
    )
    assert (data.unlabeled.benchmark, data.unlabeled.part) == (name, "train")
    assert (data.test.benchmark, data.test.part) == (name, "test")


@pytest.mark.parametrize("name", BASE_TO_NOVEL)
def test_base_to_novel_recipes_differ_in_their_set_alone(name: str) -> None:
    recipe = shipped(name)
    assert recipe.data.split == "base-to-novel"
    assert (recipe.data.labeled.benchmark, recipe.data.labeled.shots) == (name, 16)
    assert rest(recipe) == rest(shipped("sun397"))


ATTRIBUTES = {  # docs/ATPrompt.md of the authors' repository
    "imagenet": ["color", "shape"],
    "caltech101": ["shape", "size"],
    "oxford_pets": ["playfulness", "energy"],
    "stanford_cars": ["luxury"],
    "oxford_flowers": ["color", "habitat", "growth"],
    "food101": ["flavor", "preparation"],
    "fgvc_aircraft": ["design", "range"],
    "sun397": ["function"],
    "dtd": ["pattern", "color", "design"],
    "eurosat": ["habitat"],
    "ucf101": ["precision"],
}


@pytest.mark.parametrize("name", BASE_TO_NOVEL)
def test_a_recipes_comment_has_the_published_attributes_of_atprompt(
    name: str, tmp_path: Path
) -> None:
    text = shipped_recipes()[name].read_text()
    path = tmp_path / "r.yaml"
    path.write_text(text.replace("# attributes:", "attributes:"))
    loaded = load_recipe(path, {"teacher.method": "atprompt"})
    settings = choose_method(loaded, "teacher").settings
    assert settings.model_dump()["attributes"] == ATTRIBUTES[name]


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_variant_of_imagenet_is_learned_from_the_teacher_of_all_its_classes(name: str) -> None:
    source, recipe = shipped("imagenet_all"), shipped(name)
    assert source.data.split == recipe.data.split == "all"
    assert source.student == recipe.student
    assert source.optim == recipe.optim
    assert recipe.teacher is None
    assert recipe.student.settings["prompt_depth"] == 3


@pytest.mark.parametrize("name", CROSS)
def test_a_cross_dataset_recipe_is_the_sets_with_the_teacher_of_imagenets_classes(
    name: str,
) -> None:
    recipe, own, variant = shipped(f"{name}_cross"), shipped(name), shipped("imagenet_r")
    assert (recipe.name, recipe.classes) == (f"{name}_cross", own.classes)
    assert recipe.data == own.data.model_copy(update={"labeled": None, "split": "all"})
    assert (recipe.teacher, recipe.student, recipe.optim) == (None, variant.student, variant.optim)
    text = shipped_recipes()[recipe.name].read_text()
    assert f"one image weighs 1000 / {benchmark_set(name).n_classes}\n" in text


def figures(suite: Suite) -> Iterator[tuple[str, str, Any]]:
    for recipe, rows in suite.paper.figures.items():
        for label, found in rows.items():
            yield recipe, label, found


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        ("table1", BASE_TO_NOVEL),
        ("table2", sorted(f"{name}_cross" for name in CROSS)),
        ("table9", sorted(VARIANTS)),
    ],
)
def test_a_table_runs_its_sets_and_its_averages_are_those_of_its_figures(
    name: str, recipes: list[str]
) -> None:
    loaded = load_suite(SUITES / f"{name}.yaml")
    assert sorted(loaded.suite.recipes) == recipes
    assert loaded.suite.seeds == (1, 2, 3)
    check_names(loaded, loaded.suite.recipes)
    published = list(figures(loaded.suite))
    for _, label, average in [row for row in published if row[0] == AVERAGE]:
        rows = [found for recipe, row, found in published if row == label and recipe != AVERAGE]
        assert len(rows) == len(recipes)
        for part in ("base", "novel", "all"):
            values = [getattr(found, part) for found in rows]
            if None not in values:
                # Rounded to two digits, as what it is a mean of
                assert fmean(values) == pytest.approx(getattr(average, part), abs=0.0101)


def test_harmonic_means_are_those_of_the_accuracies_but_two_as_printed() -> None:
    loaded = load_suite(SUITES / "table1.yaml")
    odd = {
        (recipe, label)
        for recipe, label, found in figures(loaded.suite)
        if abs(harmonic_mean(found.base, found.novel) - found.harmonic_mean) > 0.0151
    }
    rows = ("PromptKD", "PromptKD, official")
    assert odd == {(recipe, row) for recipe in ("stanford_cars", "ucf101") for row in rows}
