"""The suites of the published tables, planned without their data."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from kdedge.config.suite import load_suite
from kdedge.errors import DataError
from kdedge.suite.plan import make_plan

SUITES = Path(__file__).parents[2] / "benchmarks" / "suites"


def test_table_1_is_planned_without_the_sets() -> None:
    plan = make_plan(load_suite(SUITES / "table1.yaml"))
    assert len(plan.recipes) == 11
    cells = Counter(cell.row for cell in plan.cells)
    assert cells.pop("CLIP") == 11
    assert set(cells.values()) == {33}


@pytest.mark.parametrize(("name", "n_rows"), [("table5", 5), ("table6", 8)])
def test_the_ablations_are_planned_without_the_set(name: str, n_rows: int) -> None:
    plan = make_plan(load_suite(SUITES / f"{name}.yaml"))
    cells = Counter(cell.row for cell in plan.cells)
    assert cells.pop("CLIP") == 1
    assert cells.pop("teacher CLIP", 1) == 1
    assert set(cells.values()) == {3}
    assert len(plan.loaded.suite.methods) == n_rows


@pytest.mark.parametrize("name", ["table2", "table9"])
def test_the_other_tables_need_the_run_of_their_teacher(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "benchmarks" / "suites"
    folder.mkdir(parents=True)
    suite = folder / f"{name}.yaml"
    suite.write_text((SUITES / suite.name).read_text())
    with pytest.raises(DataError, match=r"teacher.run: there is no folder .*runs/imagenet_all/01"):
        make_plan(load_suite(suite))
    run = tmp_path / "runs" / "imagenet_all" / "01"
    run.mkdir(parents=True)
    plan = make_plan(load_suite(suite))
    students = [cell for cell in plan.cells if cell.row == "PromptKD"]
    assert len(students) == 3 * len(plan.recipes)
    for cell in students:
        assert Path(cell.loaded.recipe.teacher.run).samefile(run)


@pytest.mark.parametrize("name", ["few-shot-1", "few-shot-2", "few-shot-imagenet"])
def test_the_few_shot_tables_are_planned_without_the_sets(name: str) -> None:
    plan = make_plan(load_suite(SUITES / f"{name}.yaml"))
    cells = Counter(cell.row for cell in plan.cells)
    assert cells.pop("CLIP") == len(plan.recipes)
    assert set(cells.values()) == {3 * len(plan.recipes)}
    assert len(cells) == 10


def test_the_few_shot_tables_have_all_sets_once() -> None:
    suites = [load_suite(path).suite for path in SUITES.glob("few-shot-*.yaml")]
    table1 = load_suite(SUITES / "table1.yaml").suite
    assert sorted(table1.recipes) == sorted(name for suite in suites for name in suite.recipes)


def test_table_3_is_planned_and_says_what_each_method_learns_from() -> None:
    plan = make_plan(load_suite(SUITES / "table3.yaml"))
    sees = {cell.row: cell.sees for cell in plan.cells}
    assert [row for row, seen in sees.items() if not seen.unlabeled_images] == ["PromptSRC", "CLIP"]
    assert {row for row, seen in sees.items() if seen.labels} == {
        *("PromptSRC", "FPL", "IFPL", "GRIP", "PromptKD")
    }
