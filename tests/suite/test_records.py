"""Records of cells: written whole, read strictly, one file for everything a cell depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdedge.errors import DataError, ResourceError
from kdedge.results import EvalResult
from kdedge.suite.records import CellRecord, Records

PlanOf = Callable[..., Any]


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "suites" / "grid")


def test_a_record_comes_back_as_it_was_written(plan_of: PlanOf, records: Records) -> None:
    (cell, other) = plan_of("coop, vpt", more="seeds: [1]\n").cells
    found = EvalResult("all", "last", 3, 50.0, None, None, None, 12.5)
    record = CellRecord.of(
        cell, "finished", arguments=("train",), seconds=2.5, run="r", result=found, zero_shot=found
    )
    records.write(cell, record)
    failed = CellRecord.of(other, "failed", exit_code=-9, last_lines=("a", "b"))
    records.write(other, failed)
    assert (records.read(cell), records.read(other)) == (record, failed)
    assert (records.is_finished(cell), records.is_finished(other)) == (True, False)


def test_a_changed_cell_has_another_file_and_the_old_one_stays(
    plan_of: PlanOf, records: Records
) -> None:
    (before,) = plan_of("coop", more="seeds: [1]\n").cells
    records.write(before, CellRecord.of(before, "failed", exit_code=1))
    (after,) = plan_of("coop", more="seeds: [1]\nset: {optim.epochs: 9}\n").cells
    assert records.read(after) is None
    assert records.read(before) is not None


@pytest.mark.parametrize(
    ("row", "name"),
    [("CLIP (teacher's)", "CLIP-teacher-s"), ("../../x", "x"), ("Ω", "row"), ("a/b", "a-b")],
)
def test_a_label_is_not_a_path(
    plan_of: PlanOf, records: Records, tmp_path: Path, row: str, name: str
) -> None:
    (cell,) = plan_of(f'{{name: "{row}", method: coop}}', more="seeds: [1]\n").cells
    file = records.file(cell)
    assert file.parent == tmp_path / "suites" / "grid" / "cells" / "tiny"
    assert file.name == f"{name}-seed1-{cell.key[:12]}.json"


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("status"),
        lambda values: values.update(status="done"),
        lambda values: values.update(key="x"),
        lambda values: values.update(result={"all": 5}),
        lambda values: values.update(more=1),
    ],
)
def test_a_damaged_record_is_an_error_that_says_what_to_do(
    plan_of: PlanOf, records: Records, damage: Callable[[dict[str, Any]], object]
) -> None:
    (cell,) = plan_of("coop", more="seeds: [1]\n").cells
    records.write(cell, CellRecord.of(cell, "failed", exit_code=1))
    values = json.loads(records.file(cell).read_text())
    damage(values)
    records.file(cell).write_text(json.dumps(values))
    with pytest.raises(DataError):
        records.read(cell)


def test_what_says_running_and_does_not_run_was_interrupted(
    plan_of: PlanOf, records: Records
) -> None:
    (cell,) = plan_of("coop", more="seeds: [1]\n").cells
    assert records.state(cell) == "not begun"
    records.write(cell, CellRecord.of(cell, "running"))
    assert records.state(cell) == "interrupted"


def test_a_file_in_the_folders_place_is_said(plan_of: PlanOf, records: Records) -> None:
    (cell,) = plan_of("coop", more="seeds: [1]\n").cells
    records.folder.mkdir(parents=True)
    (records.folder / "cells").write_text("mine")
    with pytest.raises(ResourceError, match=r"cells/tiny could not be written"):
        records.write(cell, CellRecord.of(cell, "running"))
    assert (records.folder / "cells").read_text() == "mine"
