"""The table of a suite against a slow, obvious computation."""

from __future__ import annotations

import csv
import io
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.paper.suite.plan import Cell
from kdedge.paper.suite.state import Outcome
from kdedge.paper.suite.tables import make_lines, make_tables, to_csv, to_markdown, to_record
from kdedge.records.evaluation import EvalResult

PlanOf = Callable[..., Any]


def result(base: float | None, novel: float | None, all_classes: float) -> EvalResult:
    both = base is not None and novel is not None
    return EvalResult(
        split="base-to-novel" if both else "all",
        selection="last",
        n_images=10,
        all=all_classes,
        base=base,
        novel=novel,
        harmonic_mean=2 * base * novel / (base + novel) if both else None,
        ece_percent=1.0,
    )


class Outcomes(dict[Cell, Outcome]):
    """The outcomes of the cells that have one."""

    def __missing__(self, cell: Cell) -> Outcome:
        return Outcome("not begun")


def finish(outcomes: Outcomes, cell: Cell, found: EvalResult) -> None:
    outcomes[cell] = Outcome("finished", run="runs/x/01", result=found)


@pytest.fixture
def outcomes() -> Outcomes:
    return Outcomes()


def deviation(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def test_lines_are_what_a_slow_computation_gives(
    plan_of: PlanOf, outcomes: Outcomes, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_recipe("one")
    (tmp_path / "two.yaml").write_text((tmp_path / "one.yaml").read_text().replace("one", "two", 1))
    plan = plan_of("coop, promptkd", recipes="one.yaml, two.yaml", more="seeds: [1, 2, 3]\n")
    rng = random.Random(0)
    seen: dict[tuple[str, str], list[EvalResult]] = {}
    for cell in plan.cells:
        found = result(rng.uniform(40, 90), rng.uniform(40, 90), rng.uniform(20, 60))
        finish(outcomes, cell, found)
        seen.setdefault((cell.recipe, cell.row), []).append(found)
    rows = list(csv.DictReader(io.StringIO(to_csv(make_lines(plan, outcomes)))))
    assert [(row["recipe"], row["method"]) for row in rows] == [
        (recipe, method) for recipe in ("one", "two", "average") for method in ("coop", "promptkd")
    ]
    for row in rows:
        if row["recipe"] == "average":
            pairs = zip(seen["one", row["method"]], seen["two", row["method"]], strict=True)
            expected = [
                result((a.base + b.base) / 2, (a.novel + b.novel) / 2, (a.all + b.all) / 2)
                for a, b in pairs
            ]
        else:
            expected = seen[row["recipe"], row["method"]]
        for name in ("base", "novel", "all"):
            values = [getattr(each, name) for each in expected]
            assert float(row[name]) == pytest.approx(sum(values) / 3, rel=1e-12)
            assert float(row[f"{name}_std"]) == pytest.approx(deviation(values), rel=1e-9)
        base, novel = float(row["base"]), float(row["novel"])
        assert float(row["harmonic_mean"]) == pytest.approx(2 / (1 / base + 1 / novel), rel=1e-12)
        harmonic = [each.harmonic_mean for each in expected]
        assert float(row["harmonic_mean_std"]) == pytest.approx(deviation(harmonic), rel=1e-9)
        assert (row["n_seeds"], row["n_planned"]) == ("3", "3")


def test_markdown_and_text_round_the_same_figures(plan_of: PlanOf, outcomes: Outcomes) -> None:
    plan = plan_of("coop", more="seeds: [1, 2]\n")
    for cell, base in zip(plan.cells, (60.0, 61.0), strict=True):
        finish(outcomes, cell, result(base, 40.0, 30.0))
    lines = make_lines(plan, outcomes)
    (grid,) = make_tables(lines)
    assert grid.header == ["method", "base", "novel", "HM", "all", "seeds"]
    row = ["coop", "60.50 ± 0.71", "40.00 ± 0.00", "48.16 ± 0.22", "30.00 ± 0.00", "2"]
    assert grid.rows == [row]
    assert "| " + " | ".join(row) + " |" in to_markdown(plan, lines).splitlines()


def test_one_seed_has_no_deviation_and_missing_ones_are_counted(
    plan_of: PlanOf, outcomes: Outcomes
) -> None:
    plan = plan_of("coop, vpt", more="seeds: [1, 2, 3]\n")
    finish(outcomes, plan.of("tiny", "coop")[0], result(60.0, 40.0, 30.0))
    (grid,) = make_tables(make_lines(plan, outcomes))
    assert grid.rows == [
        ["coop", "60.00", "40.00", "48.00", "30.00", "1 of 3"],
        ["vpt", "-", "-", "-", "-", "0 of 3"],
    ]


def test_a_cell_that_failed_is_in_no_mean(plan_of: PlanOf, outcomes: Outcomes) -> None:
    plan = plan_of("coop", more="seeds: [1, 2]\n")
    finish(outcomes, plan.cells[0], result(60.0, 40.0, 30.0))
    outcomes[plan.cells[1]] = Outcome("failed", exit_code=5)
    (line,) = make_lines(plan, outcomes)
    assert (line.n_seeds, line.mean["base"], line.std["base"]) == (1, 60.0, None)


def test_the_average_takes_seeds_that_all_recipes_have(
    plan_of: PlanOf, outcomes: Outcomes, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_recipe("one")
    (tmp_path / "two.yaml").write_text((tmp_path / "one.yaml").read_text().replace("one", "two", 1))
    plan = plan_of("coop", recipes="one.yaml, two.yaml", more="seeds: [1, 2]\n")
    for cell in plan.cells[:3]:
        finish(outcomes, cell, result(50.0 + 10 * cell.seed, 40.0, 30.0))
    average = make_lines(plan, outcomes)[-1]
    assert (average.recipe, average.n_seeds, average.mean["base"]) == ("average", 1, 60.0)


def test_published_figures_stand_beside_ours(plan_of: PlanOf, outcomes: Outcomes) -> None:
    plan = plan_of(
        "coop, vpt",
        more="seeds: [1]\npaper: {source: table 7, figures: {tiny: {vpt: {base: 80, all: 7.5}}}}\n",
    )
    lines = make_lines(plan, outcomes)
    (grid,) = make_tables(lines)
    assert grid.header == ["method", "seeds", "paper base", "paper all"]
    assert grid.rows == [["coop", "0 of 1", "-", "-"], ["vpt", "0 of 1", "80.00", "7.50"]]
    assert to_markdown(plan, lines).endswith("Paper: table 7\n")
    assert to_record(plan, outcomes, lines)["lines"][1]["paper"] == {
        "base": 80.0,
        "novel": None,
        "harmonic_mean": None,
        "all": 7.5,
    }


def test_without_a_split_there_is_one_accuracy(
    plan_of: PlanOf, outcomes: Outcomes, write_recipe: Callable[..., Path]
) -> None:
    write_recipe(split="all")
    plan = plan_of("coop", more="seeds: [1]\n")
    finish(outcomes, plan.cells[0], result(None, None, 30.0))
    (grid,) = make_tables(make_lines(plan, outcomes))
    assert (grid.header, grid.rows) == (["method", "all", "seeds"], [["coop", "30.00", "1"]])


def test_labels_cannot_break_a_markdown_table(plan_of: PlanOf, outcomes: Outcomes) -> None:
    plan = plan_of('{name: "a | b", method: coop}', more="seeds: [1]\n")
    text = to_markdown(plan, make_lines(plan, outcomes))
    (row,) = re.findall(r"(?m)^\| a .*$", text)
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_what_rows_learn_from_stands_beside_them_where_they_differ(
    plan_of: PlanOf, outcomes: Outcomes
) -> None:
    plan = plan_of("zeroshot, coop, upl, pseudo_label, promptkd", more="seeds: [1]\n")
    lines = make_lines(plan, outcomes)
    (grid,) = make_tables(lines)
    assert grid.header == ["method", "labels", "unlabeled", "novel names", "seeds"]
    assert [row[:4] for row in grid.rows] == [
        ["zeroshot", "-", "-", "-"],
        ["coop", "yes", "-", "-"],
        ["upl", "-", "yes", "yes"],
        ["pseudo_label", "yes", "yes", "yes"],
        ["promptkd", "yes", "yes", "yes"],  # the labels are its teacher's
    ]
    rows = list(csv.DictReader(io.StringIO(to_csv(lines))))
    assert [row["unlabeled_images"] for row in rows] == ["no", "no", "yes", "yes", "yes"]
    assert to_record(plan, outcomes, lines)["lines"][1]["sees"]["labels"] is True
    assert "novel names: training knows" in to_markdown(plan, lines)


def test_a_file_of_pseudo_labels_shows_a_row_unlabeled_images(
    plan_of: PlanOf, tmp_path: Path, outcomes: Outcomes
) -> None:
    (tmp_path / "labels.jsonl").touch()
    plan = plan_of(
        "coop, {name: alone, method: coop, set: {data.pseudo_labels: labels.jsonl, data.labeled:"
        " null}}, {name: both, method: vpt, set: {data.pseudo_labels: labels.jsonl}}",
        more="seeds: [1]\n",
    )
    (grid,) = make_tables(make_lines(plan, outcomes))
    assert [row[:4] for row in grid.rows] == [
        ["coop", "yes", "-", "-"],
        ["alone", "-", "yes", "yes"],
        ["both", "yes", "yes", "yes"],
    ]


def test_a_student_without_labels_has_a_teacher_without(
    plan_of: PlanOf, outcomes: Outcomes
) -> None:
    plan = plan_of(
        "coop, {name: PromptKD, method: promptkd, set: {teacher.method: zeroshot}}",
        more="seeds: [1]\n",
    )
    (grid,) = make_tables(make_lines(plan, outcomes))
    assert grid.rows[1][:4] == ["PromptKD", "-", "yes", "yes"]


def test_official_rows_are_marked_wherever_a_table_is(plan_of: PlanOf, outcomes: Outcomes) -> None:
    official = "{name: theirs, method: promptkd, set: {official: true}}"
    plan = plan_of(f"zeroshot, promptkd, {official}", more="seeds: [1]\n")
    for cell in plan.cells:
        finish(outcomes, cell, result(60.0, 40.0, 30.0))
    lines = make_lines(plan, outcomes)
    assert [line.is_official for line in lines] == [False, False, True]
    (grid,) = make_tables(lines)
    assert [row[0] for row in grid.rows] == ["zeroshot", "promptkd", "theirs †"]
    assert "† official: true" in to_markdown(plan, lines)
    assert [row["official"] for row in csv.DictReader(io.StringIO(to_csv(lines)))] == [
        "no", "no", "yes",
    ]  # fmt: skip
    assert to_record(plan, outcomes, lines)["lines"][2]["is_official"]


def test_a_row_is_official_where_its_recipe_says_so(
    plan_of: PlanOf, outcomes: Outcomes, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_recipe("one")
    (tmp_path / "two.yaml").write_text((tmp_path / "one.yaml").read_text().replace("one", "two", 1))
    row = "{name: theirs, method: promptkd, set_on: {two: {official: true}}}"
    plan = plan_of(row, recipes="one.yaml, two.yaml", more="seeds: [1]\n")
    for cell in plan.cells:
        finish(outcomes, cell, result(60.0, 40.0, 30.0))
    assert {line.recipe: line.is_official for line in make_lines(plan, outcomes)} == {
        "one": False, "two": True, "average": True,
    }  # fmt: skip
