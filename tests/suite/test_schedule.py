"""Which cells run side by side."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.suite import load_suite
from kdedge.suite.plan import Cell, make_plan
from kdedge.suite.run import shared_cores
from kdedge.suite.schedule import next_cell

PlanOf = Callable[..., Any]

ONE_SEED = "seeds: [1]\n"
WIDE = "{name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}"


def started(
    plan: Any, *, running: Collection[Cell] = (), finished: Collection[str] = ()
) -> list[tuple[str, int]]:
    """The cells that start at once where there is room for all."""
    queue = [cell for cell in plan.cells if cell not in running]
    busy = list(running)
    while (cell := next_cell(queue, busy, is_finished=lambda key: key in finished)) is not None:
        queue.remove(cell)
        busy.append(cell)
    return [(cell.row, cell.seed) for cell in busy]


def test_cells_of_one_teacher_start_one_by_one_until_it_is_there(plan_of: PlanOf) -> None:
    plan = plan_of(f"promptkd, {WIDE}, {{name: teacher, role: teacher}}", more="seeds: [1, 2]\n")
    assert started(plan) == [("promptkd", 1), ("promptkd", 2)]
    (teacher,) = plan.of("tiny", "teacher")[0].models
    both = [("promptkd", 1), ("wide", 1), ("teacher", 1), ("promptkd", 2)]
    assert started(plan, finished=[teacher]) == both
    running = [plan.of("tiny", "teacher")[0]]
    assert started(plan, running=running) == [("teacher", 1), ("promptkd", 2)]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ("student.optim.epochs: 3", True),
        ("data.unlabeled.per_class: 2", True),
        ("teacher.settings: {n_ctx_text: 4}", True),  # as the defaults
        ("teacher.optim.n_workers: 0", True),
        ("teacher.optim.micro_batch: 1", True),  # the same weights, up to rounding
        ("teacher.settings: {n_ctx_text: 2}", False),
        ("teacher.optim.epochs: 3", False),
        ("data.labeled.shots: 2", False),
        ("teacher.run: pool", False),
    ],
)
def test_one_teacher_is_told_from_another_by_what_its_weights_depend_on(
    plan_of: PlanOf, change: str, is_same: bool
) -> None:
    row = "{name: other, method: promptkd, set: {" + change + "}}"
    plan = plan_of(f"promptkd, {row}", more=ONE_SEED)
    assert started(plan) == [("promptkd", 1)] if is_same else [("promptkd", 1), ("other", 1)]


def test_baselines_run_side_by_side_and_zero_shot_clip_waits_for_who_measures_it(
    plan_of: PlanOf,
) -> None:
    plan = plan_of("zeroshot, {name: teacher, role: teacher}, coop, vpt", more=ONE_SEED)
    assert started(plan) == [("teacher", 1), ("coop", 1), ("vpt", 1)]
    plan = plan_of("zeroshot, {name: teacher, role: teacher}", more=ONE_SEED)
    assert started(plan) == [("teacher", 1), ("zeroshot", 1)]


def test_what_is_measured_on_another_cells_run_waits_for_it(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    write_recipe("first")
    write_recipe("second")
    suite = tmp_path / "s.yaml"
    row = "{name: far, method: coop, trained_on: second.yaml}"
    suite.write_text(f"name: grid\nrecipes: [first.yaml]\nmethods: [{row}]\n{ONE_SEED}")
    plan = make_plan(load_suite(suite))
    trained, measured = plan.cells
    assert started(plan) == [("far", 1)]
    assert next_cell([measured], [trained], is_finished=lambda _: True) is None
    assert next_cell([measured], [], is_finished=lambda _: False) is measured


def test_recipes_that_differ_in_name_alone_do_not_train_the_same_at_once(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    first = write_recipe("first")
    (tmp_path / "second.yaml").write_text(first.read_text().replace("first", "second"))
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: grid\nrecipes: [first.yaml, second.yaml]\nmethods: [coop, vpt]\n" + ONE_SEED
    )
    assert started(make_plan(load_suite(suite))) == [("coop", 1), ("vpt", 1)]


def test_processes_share_the_cores_unless_the_user_has_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert shared_cores(2) == {}
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert shared_cores(10_000) == {"OMP_NUM_THREADS": "1"}
    assert int(shared_cores(1)["OMP_NUM_THREADS"]) >= 1
