"""What is recorded of cells that no process is started for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.suite.runner import Runner


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_a_recipe_that_changes_while_a_suite_runs_gives_no_result_for_the_planned_one(
    plan_of: Callable[..., Any], ledger_of: Callable[..., Any], tmp_path: Path, change: str
) -> None:
    ledger = ledger_of(plan_of("coop", more="seeds: [1]\n"))
    (cell,) = ledger.plan.cells
    recipe = tmp_path / "tiny.yaml"
    if change == "edited":
        recipe.write_text(recipe.read_text().replace("epochs: 2", "epochs: 3"))
    else:
        recipe.unlink()
    ended: list[int] = []
    runner = Runner(
        ledger,
        ("--runs", str(tmp_path / "runs")),
        environment={},
        n_jobs=1,
        after_each=lambda: ended.append(1),
    )
    runner.run(lambda *_: None)
    outcome = ledger.outcome(cell)
    assert (outcome.status, outcome.failure.exit_code, len(ended)) == ("failed", 2, 1)
    assert outcome.failure.last_lines[0] == f"{recipe} has changed since this suite was started."
    assert not (tmp_path / "runs").exists()
