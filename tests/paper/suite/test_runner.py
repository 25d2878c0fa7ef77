"""A suite in this process: what becomes of files that change meanwhile, and which cells wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import load_recipe
from kdedge.paper.suite.plan import Cell, make_plan
from kdedge.paper.suite.runner import Runner, next_cell
from kdedge.paper.suite.spec import load_suite

PlanOf = Callable[..., Any]
StateOf = Callable[..., Any]

ONE_SEED = "seeds: [1]\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs what is left of a suite, with a call after each cell; gives how many have ended."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))

    def run_all(state: Any, after_each: Callable[[], None] = lambda: None) -> int:
        ended: list[None] = []
        runner = Runner(
            state,
            root=tmp_path / "runs",
            device="cpu",
            n_jobs=1,
            after_each=lambda: ended.append(after_each()),
        )
        runner.run()
        return len(ended)

    return run_all


@pytest.mark.usefixtures("forked_cells")
def test_a_recipe_that_is_gone_while_a_suite_runs_is_run_as_planned(
    plan_of: PlanOf, state_of: StateOf, run: Callable[..., int], tmp_path: Path
) -> None:
    state = state_of(plan_of("coop", more=ONE_SEED))
    (cell,) = state.plan.cells
    (tmp_path / "tiny.yaml").unlink()
    assert run(state) == 1
    outcome = state.outcomes[cell]
    assert (outcome.status, outcome.exit_code) == ("failed", 3)
    assert "student.pt" in outcome.last_lines[0]  # it is empty
    used = tmp_path / "suites/grid/cells/tiny/coop-seed1.yaml"
    assert load_recipe(used).recipe == cell.loaded.recipe


@pytest.mark.slow
@pytest.mark.usefixtures("forked_cells")
def test_images_that_change_while_a_suite_runs_are_looked_at_by_the_next_call(
    filled: Path, plan_of: PlanOf, state_of: StateOf, run: Callable[..., int]
) -> None:
    more = "set: {baseline.optim: {epochs: 1, batch_size: 8}}\n"
    state = state_of(plan_of("zeroshot, coop", more=f"{ONE_SEED}{more}"))
    image = filled / "labeled/cat/0.png"

    def change() -> None:
        """The first cell's images, which were read for both cells, change before the second's."""
        image.unlink()
        image.write_bytes((filled / "pool/dog/0.png").read_bytes())

    assert run(state, change) == 2
    assert all(map(state.is_finished, state.plan.cells))
    again = state_of(state.plan)
    assert {outcome.status for outcome in again.outcomes.values()} == {"outdated"}
    assert run(again) == 2
    runs = [outcome.run for outcome in state_of(state.plan).outcomes.values()]
    assert runs == sorted(map(str, filled.glob("runs/tiny/[0-9]*")))


# Which cells run side by side


WIDE = "{name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}"


def started(plan: Any, *finished: Cell) -> list[tuple[str, int]]:
    """The cells that start at once where there is room for all, and these are finished."""
    queue = [cell for cell in plan.cells if cell not in finished]
    busy: list[Cell] = []
    while (cell := next_cell(queue, busy, finished)) is not None:
        queue.remove(cell)
        busy.append(cell)
    return [(cell.row, cell.seed) for cell in busy]


def test_cells_of_one_teacher_start_one_by_one_until_it_is_there(plan_of: PlanOf) -> None:
    rows = f"promptkd, {WIDE}, {{name: teacher, role: teacher}}"
    plan = plan_of(rows, more="seeds: [1, 2]\n")
    assert started(plan) == [("promptkd", 1), ("promptkd", 2)]
    for row, others in (("teacher", ["promptkd", "wide"]), ("wide", ["promptkd", "teacher"])):
        of_seed = [(other, 1) for other in others]
        assert started(plan, plan.of("tiny", row)[0]) == [*of_seed, ("promptkd", 2)]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ("student.optim.epochs: 3", True),
        ("logit_adjustment: {prior: auto}", True),
        ("data.unlabeled.hold_out: 50%", True),
        ("gates: {max_drop: 3}", True),
        ("teacher.settings.n_ctx_text: 2", False),
        ("teacher.optim.epochs: 3", False),
        ("data.labeled.shots: 2", False),
        ('classes: {names: [cat, dog, red fox, school bus], template: "a {}."}', False),
    ],
)
def test_one_teacher_is_told_from_another_by_what_its_recipe_says(
    plan_of: PlanOf, change: str, is_same: bool
) -> None:
    row = "{name: other, method: promptkd, set: {" + change + "}}"
    plan = plan_of(f"promptkd, {row}", more=ONE_SEED)
    assert started(plan) == [("promptkd", 1), *([] if is_same else [("other", 1)])]


def test_what_is_measured_on_another_cells_run_waits_for_it_alone(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    write_recipe("first")
    write_recipe("second")
    suite = tmp_path / "s.yaml"
    row = "{name: far, method: coop, trained_on: second.yaml}"
    suite.write_text(f"name: grid\nrecipes: [first.yaml]\nmethods: [{row}]\nseeds: [1, 2]\n")
    plan = make_plan(load_suite(suite))
    trained, measured = plan.of("second", "far"), plan.of("first", "far")
    assert started(plan) == [("far", 1), ("far", 2)]
    assert next_cell([measured[0]], [trained[0]], []) is None
    assert next_cell([measured[0]], [trained[1], measured[1]], []) is measured[0]


def test_recipes_that_differ_in_name_alone_do_not_train_the_same_at_once(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    first = write_recipe("first")
    (tmp_path / "second.yaml").write_text(first.read_text().replace("first", "second"))
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: grid\nrecipes: [first.yaml, second.yaml]\nmethods: [coop, cocoop]\n" + ONE_SEED
    )
    assert started(make_plan(load_suite(suite))) == [("coop", 1), ("cocoop", 1)]
