"""From a suite file to its cells, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.recipe import Recipe
from kdedge.errors import DataError, RecipeError
from kdedge.paper.suite.plan import make_plan, measuring_overrides
from kdedge.paper.suite.spec import load_suite

ROOT = Path(__file__).parents[3]

PlanOf = Callable[..., Any]


def recipe_of(plan: Any, row: str) -> Recipe:
    """The recipe of a row's first cell."""
    return plan.of(plan.recipes[0], row)[0].loaded.recipe


def test_each_row_is_a_command_and_the_recipe_that_it_trains(plan_of: PlanOf) -> None:
    plan = plan_of(
        "coop, promptkd, {name: teacher, role: teacher},"
        " {name: other teacher, role: teacher, method: coop},"
        " {name: taught by CLIP, method: promptkd, set: {teacher.method: zeroshot}},"
        " {name: wide, method: vpt, set: {baseline.settings.n_ctx_vision: 2}}"
    )
    assert {cell.row: cell.command for cell in plan.cells} == {
        "coop": "train",
        "promptkd": "distill",
        "teacher": "teach",
        "other teacher": "teach",
        "taught by CLIP": "distill",
        "wide": "train",
    }
    assert [recipe_of(plan, row).baseline.method for row in ("coop", "wide")] == ["coop", "vpt"]
    assert recipe_of(plan, "wide").baseline.settings == {"n_ctx_vision": 2}
    assert recipe_of(plan, "other teacher").teacher.method == "coop"
    assert recipe_of(plan, "taught by CLIP").teacher.method == "zeroshot"
    assert [cell.loaded.recipe.seed for cell in plan.of("tiny", "coop")] == [1, 2, 3]


PROBED = "{name: probed, method: promptkd, set: {teacher.method: %s, teacher.settings: {}}}"


def test_a_row_sees_what_its_teacher_sees(plan_of: PlanOf) -> None:
    cell = plan_of(f"{PROBED % 'ridge'}, coop").of("tiny", "probed")[0]
    assert (cell.command, cell.sees.labels) == ("distill", True)
    with pytest.raises(RecipeError, match="cocoop computes its logits without class vectors"):
        plan_of(PROBED % "cocoop")


def test_a_baseline_section_of_another_method_makes_room(
    plan_of: PlanOf, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe()
    path.write_text(path.read_text() + "baseline: {method: vpt, settings: {n_ctx_vision: 2}}\n")
    plan = plan_of("coop, vpt")
    assert recipe_of(plan, "coop").baseline.settings == {}
    assert recipe_of(plan, "vpt").baseline.settings == {"n_ctx_vision": 2}


def test_another_teacher_comes_without_the_settings_of_the_recipes(
    plan_of: PlanOf, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe()
    path.write_text(
        path.read_text().replace("teacher.pt}", "teacher.pt, settings: {prompt_depth_text: 2}}")
    )
    plan = plan_of("{name: other teacher, role: teacher, method: coop}")
    assert recipe_of(plan, "other teacher").teacher.settings == {}


def test_overrides_of_all_rows_come_before_those_of_one(plan_of: PlanOf) -> None:
    plan = plan_of(
        "promptkd, {name: a, method: promptkd, set: {optim.epochs: 5}}",
        more="set: {optim: {epochs: 4}}\n",
    )
    assert [recipe_of(plan, row).optim.epochs for row in ("promptkd", "a")] == [4, 5]


def test_settings_of_a_row_on_one_recipe_are_for_that_recipe_alone(
    plan_of: PlanOf, write_recipe: Callable[..., Path]
) -> None:
    write_recipe("a")
    write_recipe("b")
    row = "{{name: x, method: promptkd, set: {{optim.epochs: 5}}, set_on: {{{}: {}}}}}"
    plan = plan_of(row.format("b", "{optim.epochs: 6}"), recipes="a.yaml, b.yaml")
    epochs = {name: plan.of(name, "x")[0].loaded.recipe.optim.epochs for name in plan.recipes}
    assert epochs == {"a": 5, "b": 6}
    with pytest.raises(RecipeError, match=r"set_on: c is not a recipe of this suite.*\n.*a, b"):
        plan_of(row.format("c", "{optim.epochs: 6}"), recipes="a.yaml, b.yaml")
    with pytest.raises(RecipeError, match=r"baseline\.settings changes nothing"):
        plan_of(row.format("b", "{baseline.settings: {}}"), recipes="a.yaml, b.yaml")


def test_a_depth_beyond_a_clips_layers_is_found_with_the_row(
    plan_of: PlanOf, tmp_path: Path, write_clip: Callable[..., Path], tiny_sizes: dict[str, int]
) -> None:
    """Whether a file of weights tells the layers, or a name."""
    rows = (
        "{name: deep, method: promptkd, set: {student.weights: %s}}",
        "{name: deep, method: promptkd, set: {student.backbone: ViT-B-16, student.weights: openai,"
        " student.settings.prompt_depth: 13}}",
    )
    for row, n_layers in zip(rows, (3, 12), strict=True):
        with pytest.raises(RecipeError) as caught:
            plan_of(row.replace("%s", str(write_clip(tiny_sizes))))
        assert "deep with" in str(caught.value)
        assert "student.settings.prompt_depth is" in str(caught.value)
        assert "image encoder of" in str(caught.value)
        assert f"has {n_layers} layers.\n  Set it to {n_layers} or less." in str(caught.value)


@pytest.mark.parametrize("method", ["clip_pr", "lafter"])
def test_pseudo_labels_that_a_row_would_not_read_are_found_with_it(
    plan_of: PlanOf, tmp_path: Path, method: str
) -> None:
    (tmp_path / "labels.jsonl").touch()
    with pytest.raises(RecipeError, match=f"{method} uses no labels"):
        plan_of(f"{{method: {method}, set: {{data.pseudo_labels: labels.jsonl}}}}")


def test_paths_of_overrides_start_at_the_suites_folder(
    plan_of: PlanOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "other.pt").touch()
    plan = plan_of("promptkd", more="set: {student.weights: other.pt, data.test: {folder: pool}}\n")
    recipe = recipe_of(plan, "promptkd")
    assert (str(recipe.student.weights), recipe.data.test.folder) == (
        *(f"{tmp_path}/other.pt", tmp_path / "pool"),
    )


def test_cells_run_seed_by_seed_and_zero_shot_clip_once(plan_of: PlanOf) -> None:
    plan = plan_of("zeroshot, coop, promptkd", more="seeds: [7, 5]\n")
    assert [(cell.row, cell.seed) for cell in plan.cells] == [
        ("zeroshot", 7),
        ("coop", 7),
        ("promptkd", 7),
        ("coop", 5),
        ("promptkd", 5),
    ]


@pytest.fixture
def two_recipes(write_recipe: Callable[..., Path]) -> str:
    """A recipe `tiny` and one of other classes, measured on the folder `pool`."""
    path = write_recipe("tiny")
    other = path.read_text().replace("name: tiny", "name: other")
    other = other.replace("[cat, dog, red fox, school bus]", "[owl, red fox]")
    path.with_name("other.yaml").write_text(other.replace("folder: test", "folder: pool"))
    return "other.yaml"


CLASSES = 'classes={names: [owl, "red fox"], template: "a photo of a {}."}'
TRAINED_ELSEWHERE = "{name: far, method: coop, trained_on: tiny.yaml}"


def test_a_row_trained_elsewhere_is_trained_there_once_a_seed_and_measured_here(
    plan_of: PlanOf, two_recipes: str, tmp_path: Path
) -> None:
    plan = plan_of(f"vpt, {TRAINED_ELSEWHERE}", recipes=two_recipes, more="seeds: [1, 2]\n")
    assert (plan.recipes, plan.sources) == (("other",), ("tiny",))
    assert plan.of("tiny", "vpt") == []
    trained, measured = plan.of("tiny", "far"), plan.of("other", "far")
    assert [cell.command for cell in (*trained, *measured)] == ["train", "train", "eval", "eval"]
    assert [cell.source for cell in measured] == trained
    assert measuring_overrides(measured[0].loaded.recipe) == [
        CLASSES,
        f"data.test={{folder: {tmp_path}/pool}}",
        "data.split=base-to-novel",
        "data.root=null",
    ]
    assert plan.cells.index(trained[1]) < plan.cells.index(measured[0])


def test_a_recipe_of_the_suite_may_be_the_one_that_a_row_is_trained_on(
    plan_of: PlanOf, two_recipes: str
) -> None:
    recipes = f"{two_recipes}, ./tiny.yaml"
    plan = plan_of(f"coop, {TRAINED_ELSEWHERE.replace('coop', 'vpt')}", recipes=recipes)
    assert (plan.recipes, plan.sources) == (("other", "tiny"), ())
    assert [cell.source for cell in plan.of("tiny", "far")] == [None] * 3
    assert [cell.source for cell in plan.of("other", "far")] == plan.of("tiny", "far")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            "promptkd, trained_on: tiny.yaml",
            "row can only predict the class names that its teacher",
        ),
        ("zeroshot, trained_on: tiny.yaml", "row is not trained.\n  Remove trained_on"),
        (
            "clip_pr, trained_on: tiny.yaml",
            "row trains separate tensors for each class of tiny, and 1 of the 2 classes of"
            ' other are not among them, first "owl".\n  Remove trained_on from this row.',
        ),
        ("coop, trained_on: tin.yaml", "There is no recipe tin.yaml.\n  Did you mean tiny.yaml?"),
    ],
)
def test_rows_that_cannot_answer_for_other_classes_are_not_trained_elsewhere(
    plan_of: PlanOf, two_recipes: str, row: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(f"coop, {{name: row, method: {row}}}", recipes=two_recipes)
    assert str(caught.value).startswith(str(caught.value).partition(":")[0] + ":3: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("method", ["clip_pr", "lafter"])
def test_a_row_of_single_classes_is_measured_where_it_was_trained_on_all_of_them(
    plan_of: PlanOf, two_recipes: str, tmp_path: Path, method: str
) -> None:
    other = tmp_path / two_recipes
    other.write_text(other.read_text().replace("[owl, ", "[cat, "))
    plan = plan_of(f"{{name: far, method: {method}, trained_on: tiny.yaml}}", recipes=two_recipes)
    assert [cell.source for cell in plan.of("other", "far")] == plan.of("tiny", "far")


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        (
            "copp",
            's.yaml:3: copp with {}/tiny.yaml:\nThere is no method "copp".\n  Did you mean coop?',
        ),
        (
            "{method: promptkd, set: {student.settings.losses.kl.tmperature: 1}}",
            "s.yaml:3: promptkd with {}/tiny.yaml:\noverrides: student.settings.losses.kl"
            ".tmperature is not a known key.\n  Did you mean temperature?",
        ),
        (
            "{method: promptkd, set: {optim.epoch: 1}}",
            "overrides: optim.epoch is not a known key.\n  Did you mean epochs?",
        ),
        ("{method: promptkd, set: {optim.epochs: 0}}", "optim.epochs must be at least 1, got 0."),
        (
            "{method: coop, set: {student.optim.epochs: 1}}",
            "set: student.optim.epochs changes nothing: this row is the recipe's baseline, which"
            " does not depend on student.optim.",
        ),
        ("{method: coop, set: {teacher: {method: coop}}}", "does not depend on teacher."),
        ("{role: teacher, method: coop, set: {student.x: 1}}", "does not depend on student."),
        ("{method: promptkd, set: {baseline.method: coop}}", "does not depend on baseline."),
        ("{name: x, role: teacher, method: promptkd}", "promptkd needs a teacher itself"),
        (
            "{method: upl, set: {data.pseudo_labels: teacher.pt}}",
            "upl makes its own pseudo-labels, but the recipe has data.pseudo_labels.",
        ),
        ("{name: x, role: teacher, method: cocoop}", "cannot teach a student"),
        ("{method: promptkd, set: {teacher.method: promptkd}}", "needs a teacher itself"),
    ],
)
def test_a_mistake_in_a_row_is_found_before_anything_runs(
    plan_of: PlanOf, tmp_path: Path, methods: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(methods)
    assert expected.format(tmp_path) in str(caught.value)


def test_a_mistake_in_the_recipe_keeps_its_line(
    plan_of: PlanOf, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe()
    path.write_text(path.read_text().replace("optim: {epochs", "optim: {epoch"))
    with pytest.raises(RecipeError) as caught:
        plan_of("coop")
    assert str(caught.value) == (
        f"{tmp_path}/s.yaml:2: the recipe {path}:\n"
        f"{path}:10: optim.epoch is not a known key.\n  Did you mean epochs?"
    )


def test_files_that_are_not_there_are_found_before_anything_runs(
    plan_of: PlanOf, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"teacher.weights cannot be read: there is no .*gone.pt"):
        plan_of("promptkd", more="set: {teacher.weights: gone.pt}\n")


def test_recipes_without_test_images_are_refused(plan_of: PlanOf) -> None:
    with pytest.raises(RecipeError, match=r"has no data.test, but a suite needs accuracies"):
        plan_of("coop", more="set: {data.test: null}\n")


def test_two_recipes_of_one_name_are_refused(
    plan_of: PlanOf, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "copy.yaml").write_text(write_recipe().read_text())
    with pytest.raises(RecipeError, match=r"copy.yaml has the name tiny, as another of the suite"):
        plan_of("coop", recipes="tiny.yaml, copy.yaml")


def test_a_recipe_is_not_called_as_the_mean_over_all(
    plan_of: PlanOf, write_recipe: Callable[..., Path]
) -> None:
    write_recipe("average")
    with pytest.raises(RecipeError, match=r"has the name average, as the mean over all recipes"):
        plan_of("coop", recipes="average.yaml")


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("benchmarks/suites/*.yaml")), ids=lambda p: p.stem
)
def test_every_suite_of_the_project_names_settings_that_its_methods_know(path: Path) -> None:
    try:
        plan = make_plan(load_suite(path))
    except DataError:
        text = path.read_text()
        is_made_first = "teacher.run" in text or "random_towers.py" in text
        is_on_mini = "../mini/" in text and "../real/" not in text and not is_made_first
        if is_on_mini and (ROOT.parent / "shared/mini").is_dir():
            raise
        pytest.skip("its images, weights, or its teacher's run, are not on this machine")
    assert len(plan.cells) >= 3
