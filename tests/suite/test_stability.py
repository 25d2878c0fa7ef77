"""The script that measures how much depends on the seed, without its photos."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kdedge.config.suite import load_suite
from kdedge.config.yaml_file import dump_yaml
from kdedge.suite.plan import make_plan

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "stability.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("stability", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_its_rows_are_all_different_and_one_is_official(
    script: ModuleType, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    write_recipe()
    rows = [
        {"name": name, "method": "promptkd", "set": values} for name, values in script.ROWS.items()
    ]
    suite = {"name": "s", "recipes": ["tiny.yaml"], "methods": rows, "seeds": [1, 2]}
    (tmp_path / "s.yaml").write_text(dump_yaml(suite))
    plan = make_plan(load_suite(tmp_path / "s.yaml"))
    assert len(plan.cells) == 2 * len(rows)  # equal rows are refused
    assert {cell.row for cell in plan.cells if cell.is_official} == {"official"}


def test_the_table_has_the_spread_of_what_is_finished_and_the_time_of_the_rest(
    script: ModuleType, tmp_path: Path
) -> None:
    def cell(row: str, mean: float | None) -> dict[str, Any]:
        result = None if mean is None else {"harmonic_mean": mean, "novel": mean + 1}
        status = "not begun" if mean is None else "finished"
        return {"recipe": "r", "row": row, "status": status, "result": result, "seconds": 1800.0}

    cells = [cell("a", 50.0), cell("a", 51.0), cell("a", None), cell("b", 7.0), cell("c", None)]
    (tmp_path / "results.json").write_text(json.dumps({"cells": cells}))
    lines = script.summarize(tmp_path / "results.json")
    assert lines[2:] == [
        "| r | a | 2 | 50.50 | 0.71 | 50.00 to 51.00 | 0.71 |",
        "| r | b | 1 | 7.00 | - | 7.00 to 7.00 | - |",
        "\n2 of 5 cells are left: about 1.0 h of one core.",
    ]
