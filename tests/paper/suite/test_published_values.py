"""Recipes and suites train with what the methods' public code has: `published.yaml`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import load_recipe, shipped_recipes
from kdedge.config.optim_spec import OptimSettings, resolve_optim
from kdedge.config.yaml_file import parse_yaml
from kdedge.errors import DataError
from kdedge.methods.registry import load_method
from kdedge.paper.suite.plan import Cell, Plan, make_plan
from kdedge.paper.suite.spec import load_suite
from kdedge.setup.method import choose_method

SUITES = Path(__file__).parents[3] / "benchmarks" / "suites"
FILE = Path(__file__).with_name("published.yaml")
PUBLISHED: Any = parse_yaml(FILE.read_text(encoding="utf-8"), name=FILE.name)[0]
CASES = [
    (suite, row, published)
    for published in PUBLISHED["rows"]
    for suite in published["suites"]
    for row in ([published["row"]] if isinstance(published["row"], str) else published["row"])
]


@cache
def plan_of(suite: str, folder: Path) -> Plan:
    """The plan of a suite, copied to a folder that has the run of the teacher it names."""
    (folder / "runs" / "imagenet_all" / "01").mkdir(parents=True, exist_ok=True)
    copy = folder / "benchmarks" / "suites" / f"{suite}.yaml"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text((SUITES / copy.name).read_text(encoding="utf-8"), encoding="utf-8")
    return make_plan(load_suite(copy))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suites")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def check(optim: OptimSettings, settings: Mapping[str, Any], published: Mapping[str, Any]) -> None:
    """Compares every published value with the one that is used."""
    used, own = optim.model_dump(), flat(settings)
    expected = {**published.get("optim", {}), **published.get("ours", {})}
    assert {key: used[key] for key in expected} == expected
    assert {key: own[key] for key in published["settings"]} == published["settings"]


@pytest.mark.parametrize(
    ("suite", "row", "published"), CASES, ids=[f"{suite}, {row}" for suite, row, _ in CASES]
)
def test_a_row_trains_with_the_published_values(
    suite: str, row: str, published: dict[str, Any], folder: Path
) -> None:
    plan = plan_of(suite, folder)
    cells: list[Cell] = [cell for cell in plan.cells if cell.row == row]
    cells = [cell for cell in cells if cell.source is None]
    sets = published.get("sets")
    if sets is not None:
        cells = [cell for cell in cells if cell.recipe in sets]
        assert {cell.recipe for cell in cells} == set(sets)
    assert cells
    shared = {**PUBLISHED["dassl"]["optim"], **published["optim"]}
    for cell in cells:
        choice = choose_method(cell.loaded, cell.role)
        assert not cell.is_official
        check(choice.optim, choice.settings.model_dump(), {**published, "optim": shared})


@pytest.mark.parametrize(
    ("recipe", "published"),
    [(name, one) for one in PUBLISHED["rows"] for name in one.get("teachers", [])],
)
def test_a_teacher_of_many_suites_trains_with_the_published_values(
    recipe: str, published: dict[str, Any]
) -> None:
    choice = choose_method(load_recipe(shipped_recipes()[recipe]), "teacher")
    shared = {**PUBLISHED["dassl"]["optim"], **published["optim"]}
    check(choice.optim, choice.settings.model_dump(), {**published, "optim": shared})


@pytest.mark.parametrize("published", PUBLISHED["methods"], ids=lambda one: one["method"])
def test_a_methods_defaults_are_the_published_ones(published: dict[str, Any]) -> None:
    module = load_method(published["method"])
    optim = resolve_optim(module.METHOD.optim, None)
    check(optim, module.Settings().model_dump(), published)


def test_every_value_has_its_repository_and_every_published_row_of_promptkd_a_value() -> None:
    for entry in (*PUBLISHED["rows"], *PUBLISHED["methods"]):
        assert entry["source"].partition(":")[0] in PUBLISHED["repositories"]
    sets = [set(one["sets"]) for _, row, one in CASES if row == "PromptKD" and "sets" in one]
    assert set.union(*sets) == set(load_suite(SUITES / "table1.yaml").suite.recipes)


# The published tables, planned without their data


FEW_SHOT = ("few-shot-1", "few-shot-2", "few-shot-imagenet")


@pytest.mark.parametrize("name", ["table1", "table5", "table6", *FEW_SHOT])
def test_a_table_is_planned_without_its_sets(name: str) -> None:
    plan = make_plan(load_suite(SUITES / f"{name}.yaml"))
    n_recipes = len(plan.recipes)
    cells = Counter(cell.row for cell in plan.cells)
    assert len(cells) == len(plan.loaded.suite.methods)
    assert cells.pop("CLIP") == n_recipes
    assert cells.pop("teacher CLIP", 1) == 1
    assert set(cells.values()) == {3 * n_recipes}


@pytest.mark.parametrize("name", ["table2", "table9"])
def test_the_other_tables_need_the_run_of_their_teacher(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "suites"
    folder.mkdir(parents=True)
    suite = folder / f"{name}.yaml"
    suite.write_text((SUITES / suite.name).read_text())
    with pytest.raises(DataError, match=r"teacher.run cannot be read: .*runs/imagenet_all/01"):
        make_plan(load_suite(suite))
    run = tmp_path / "runs" / "imagenet_all" / "01"
    run.mkdir(parents=True)
    plan = make_plan(load_suite(suite))
    students = [cell for cell in plan.cells if cell.row == "PromptKD"]
    assert len(students) == 3 * len(plan.recipes)
    for cell in students:
        assert Path(cell.loaded.recipe.teacher.run).samefile(run)


def test_the_few_shot_tables_have_all_sets_once() -> None:
    suites = [load_suite(SUITES / f"{name}.yaml").suite for name in FEW_SHOT]
    table1 = load_suite(SUITES / "table1.yaml").suite
    assert len(table1.recipes) == 11
    assert sorted(table1.recipes) == sorted(name for suite in suites for name in suite.recipes)


def test_table_3_is_planned_and_says_what_each_method_learns_from() -> None:
    plan = make_plan(load_suite(SUITES / "table3.yaml"))
    sees = {cell.row: cell.sees for cell in plan.cells}
    assert [row for row, seen in sees.items() if not seen.unlabeled_images] == ["CLIP", "PromptSRC"]
    assert {row for row, seen in sees.items() if seen.labels} == {
        *("PromptSRC", "FPL", "IFPL", "GRIP", "PromptKD")
    }
