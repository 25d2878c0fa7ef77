"""A suite in this process: what becomes of files that change meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.config.load import load_recipe
from kdedge.suite.runner import Runner


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], int]:
    """Runs what is left of a suite; gives how many cells have ended."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))

    def run_all(ledger: Any) -> int:
        ended: list[int] = []
        options = ("--runs", str(tmp_path / "runs"), "--device", "cpu")
        runner = Runner(
            ledger, options, environment={}, n_jobs=1, after_each=lambda: ended.append(1)
        )
        runner.run(lambda *_: None)
        return len(ended)

    return run_all


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_recipe_that_changes_while_a_suite_runs_is_run_as_planned(
    plan_of: Callable[..., Any],
    ledger_of: Callable[..., Any],
    run: Callable[[Any], int],
    tmp_path: Path,
    change: str,
) -> None:
    ledger = ledger_of(plan_of("coop", more="seeds: [1]\n"))
    (cell,) = ledger.plan.cells
    recipe = tmp_path / "tiny.yaml"
    if change == "edited":
        recipe.write_text(recipe.read_text().replace("shots: 4", "shots: 3"))
    else:
        recipe.unlink()
    assert run(ledger) == 1
    outcome = ledger.outcome(cell)
    assert (outcome.status, outcome.failure.exit_code) == ("failed", 3)
    assert "student.pt" in outcome.failure.last_lines[0]  # it is empty
    used = tmp_path / "suites/grid/cells/tiny/coop-seed1.yaml"
    assert load_recipe(used).recipe == cell.loaded.recipe


@pytest.mark.slow
def test_images_that_change_while_a_suite_runs_give_no_result_for_the_planned_ones(
    filled: Path,
    plan_of: Callable[..., Any],
    ledger_of: Callable[..., Any],
    run: Callable[[Any], int],
) -> None:
    more = "seeds: [1]\nset: {baseline.optim: {epochs: 1, batch_size: 8}}\n"
    ledger = ledger_of(plan_of("coop", more=more))
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
