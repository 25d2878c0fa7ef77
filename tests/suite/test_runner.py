"""A suite in this process: what becomes of files that change meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import load_recipe
from kdedge.config.suite import load_suite
from kdedge.suite.plan import Cell, make_plan
from kdedge.suite.runner import Runner, next_cell

PlanOf = Callable[..., Any]
LedgerOf = Callable[..., Any]

ONE_SEED = "seeds: [1]\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], int]:
    """Runs what is left of a suite; gives how many cells have ended."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def run_all(ledger: Any) -> int:
        ended: list[int] = []
        runner = Runner(
            ledger,
            root=tmp_path / "runs",
            device="cpu",
            n_jobs=1,
            after_each=lambda: ended.append(1),
        )
        runner.run()
        return len(ended)

    return run_all


@pytest.mark.usefixtures("forked_cells")
def test_a_recipe_that_is_gone_while_a_suite_runs_is_run_as_planned(
    plan_of: PlanOf, ledger_of: LedgerOf, run: Callable[[Any], int], tmp_path: Path
) -> None:
    ledger = ledger_of(plan_of("coop", more=ONE_SEED))
    (cell,) = ledger.plan.cells
    (tmp_path / "tiny.yaml").unlink()
    assert run(ledger) == 1
    outcome = ledger.outcome(cell)
    assert (outcome.status, outcome.failure.exit_code) == ("failed", 3)
    assert "student.pt" in outcome.failure.last_lines[0]  # it is empty
    used = tmp_path / "suites/grid/cells/tiny/coop-seed1.yaml"
    assert load_recipe(used).recipe == cell.loaded.recipe


@pytest.mark.slow
@pytest.mark.usefixtures("forked_cells")
def test_images_that_change_while_a_suite_runs_give_no_result_for_the_planned_ones(
    filled: Path,
    plan_of: PlanOf,
    ledger_of: LedgerOf,
    run: Callable[[Any], int],
) -> None:
    more = "set: {baseline.optim: {epochs: 1, batch_size: 8}}\n"
    ledger = ledger_of(plan_of("coop", more=f"{ONE_SEED}{more}"))
    (cell,) = ledger.plan.cells
    image = filled / "labeled/cat/0.png"
    image.unlink()
    image.write_bytes((filled / "pool/dog/0.png").read_bytes())
    assert run(ledger) == 1
    outcome = ledger.outcome(cell)
    assert (outcome.status, outcome.failure.exit_code) == ("failed", 3)
    assert outcome.failure.last_lines[0].startswith("The files that its recipe names have changed")
    again = ledger_of(ledger.plan)  # finds the run that was made
    assert (again.outcome(cell).status, again.outcome(cell).run.name) == ("finished", "01")


# Which cells run side by side


WIDE = "{name: wide, method: promptkd, set: {student.settings.n_ctx_vision: 2}}"


def started(
    ledger: Any, *, running: Collection[Cell] = (), finished: Collection[str] = ()
) -> list[tuple[str, int]]:
    """The cells that start at once where there is room for all, and these jobs are finished."""
    queue = [cell for cell in ledger.plan.cells if cell not in running]
    busy = list(running)

    def trains(cell: Cell) -> set[str] | None:
        keys = ledger.trains(cell)
        return None if keys is None else keys - set(finished)

    while (cell := next_cell(queue, busy, trains)) is not None:
        queue.remove(cell)
        busy.append(cell)
    return [(cell.row, cell.seed) for cell in busy]


@pytest.mark.usefixtures("filled")
def test_cells_of_one_teacher_start_one_by_one_until_it_is_there(
    plan_of: PlanOf, ledger_of: LedgerOf
) -> None:
    rows = f"promptkd, {WIDE}, {{name: teacher, role: teacher}}"
    ledger = ledger_of(plan_of(rows, more="seeds: [1, 2]\n"))
    assert started(ledger) == [("promptkd", 1), ("promptkd", 2)]
    teacher = ledger.plan.of("tiny", "teacher")[0]
    both = [("promptkd", 1), ("wide", 1), ("teacher", 1), ("promptkd", 2)]
    assert started(ledger, finished=ledger.trains(teacher)) == both
    assert started(ledger, running=[teacher]) == [("teacher", 1), ("promptkd", 2)]


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ("student.optim.epochs: 3", True),
        ("data.unlabeled.per_class: 2", True),
        ("teacher.settings.n_ctx_text: 4", True),  # as the defaults
        ("teacher.optim.n_workers: 0", True),
        ("teacher.optim.micro_batch: 1", True),  # the same weights, up to rounding
        ("teacher.settings.n_ctx_text: 2", False),
        ("teacher.optim.epochs: 3", False),
        ("data.labeled.shots: 2", False),
        ('classes: {names: [cat, dog, red fox, school bus], template: "a {}."}', False),
    ],
)
@pytest.mark.usefixtures("filled")
def test_one_teacher_is_told_from_another_by_what_its_weights_depend_on(
    plan_of: PlanOf, ledger_of: LedgerOf, change: str, is_same: bool
) -> None:
    row = "{name: other, method: promptkd, set: {" + change + "}}"
    ledger = ledger_of(plan_of(f"promptkd, {row}", more=ONE_SEED))
    assert started(ledger) == [("promptkd", 1), *([] if is_same else [("other", 1)])]


def test_one_student_of_a_finished_teacher_is_trained_once_at_a_time(
    finished: Path, ledger_of: LedgerOf
) -> None:
    recipe = finished / "tiny.yaml"
    (finished / "copy.yaml").write_text(recipe.read_text().replace("name: tiny", "name: copy"))
    (finished / "s.yaml").write_text(
        "name: grid\nrecipes: [tiny.yaml, copy.yaml]\nseeds: [1]\n"
        "methods: [promptkd]\nset: {student.optim.epochs: 3}\n"
    )
    ledger = ledger_of()
    (key,) = ledger.trains(ledger.plan.cells[0])
    assert ledger.trains(ledger.plan.cells[1]) == {key}
    assert len(started(ledger)) == 1


def test_what_is_measured_on_another_cells_run_waits_for_it(
    tmp_path: Path, write_recipe: Callable[..., Path], ledger_of: LedgerOf
) -> None:
    write_recipe("first")
    write_recipe("second")
    suite = tmp_path / "s.yaml"
    row = "{name: far, method: coop, trained_on: second.yaml}"
    suite.write_text(f"name: grid\nrecipes: [first.yaml]\nmethods: [{row}]\n{ONE_SEED}")
    ledger = ledger_of(make_plan(load_suite(suite)))
    trained, measured = ledger.plan.cells
    assert started(ledger) == [("far", 1)]
    assert next_cell([measured], [trained], ledger.trains) is None
    assert next_cell([measured], [], ledger.trains) is measured


@pytest.mark.usefixtures("filled")
def test_recipes_that_differ_in_name_alone_do_not_train_the_same_at_once(
    tmp_path: Path, write_recipe: Callable[..., Path], ledger_of: LedgerOf
) -> None:
    first = write_recipe("first")
    (tmp_path / "second.yaml").write_text(first.read_text().replace("first", "second"))
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "name: grid\nrecipes: [first.yaml, second.yaml]\nmethods: [coop, cocoop]\n" + ONE_SEED
    )
    assert started(ledger_of(make_plan(load_suite(suite)))) == [("coop", 1), ("cocoop", 1)]


def test_a_cell_of_which_nothing_is_known_runs_alone(plan_of: PlanOf, ledger_of: LedgerOf) -> None:
    ledger = ledger_of(plan_of("coop, vpt, promptkd", more=ONE_SEED))  # with empty weights
    coop, vpt, _ = cells = ledger.plan.cells
    assert [ledger.trains(cell) for cell in cells] == [None, None, None]
    assert next_cell([coop, vpt], [], ledger.trains) == coop
    assert next_cell([vpt], [coop], ledger.trains) is None
    known = {coop: {"a key"}, vpt: None}
    assert next_cell([vpt], [coop], known.get) is None
    assert next_cell([coop], [vpt], known.get) is None
