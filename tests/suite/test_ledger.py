"""How cells stand: read from runs by the keys of their jobs, and from the suite's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import DataError, ResourceError
from kdedge.records.evaluation import EvalResult
from kdedge.runs.folder import RunFolder
from kdedge.runs.results import read_evaluation
from kdedge.suite.ledger import CellAccuracy, Failure, SuiteFolder

LedgerOf = Callable[..., Any]
PlanOf = Callable[..., Any]


def states(ledger: Any) -> dict[str, str]:
    return {cell.row: outcome.status for cell, outcome in ledger.outcomes().items()}


def other_picture(path: Path) -> None:
    pixels = np.random.default_rng(99).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.unlink()  # it is a link
    Image.fromarray(pixels).save(path)


ALL_FINISHED = dict.fromkeys(("teacher", "coop", "promptkd"), "finished")


def test_runs_that_no_suite_made_finish_its_cells(finished: Path, ledger_of: LedgerOf) -> None:
    ledger = ledger_of()
    assert states(ledger) == ALL_FINISHED
    found = {cell.row: outcome for cell, outcome in ledger.outcomes().items()}
    runs = {row: outcome.run.name for row, outcome in found.items()}
    assert runs == {"teacher": "01", "promptkd": "02", "coop": "03"}
    for row, kind in (("teacher", "teacher"), ("promptkd", "student"), ("coop", "baseline")):
        expected = read_evaluation(RunFolder.open(found[row].run))[kind]
        assert found[row].result == expected
    assert found["coop"].seconds > 0


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("epochs: 2", "epochs: 3", "promptkd teacher"),
        ("shots: 4", "shots: 2", "coop promptkd teacher"),
        ("_depth: 2}", "_depth: 2, losses: {kl: {temperature: 2.0}}}", "promptkd"),
        ("{prompt_depth_text: 2", "{prompt_depth_text: 1", "promptkd teacher"),
        ("folder: test}", "folder: elsewhere}", ""),
        ("optim:", "gates: {max_drop: 2.0}\noptim:", ""),
        ("optim:", "# nothing\noptim:", ""),
    ],
)
def test_what_a_recipe_changes_is_what_runs_again(
    finished: Path, ledger_of: LedgerOf, old: str, new: str, changed: str
) -> None:
    recipe = finished / "tiny.yaml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    (finished / "elsewhere").symlink_to(finished / "test")
    assert states(ledger_of()) == ALL_FINISHED | dict.fromkeys(changed.split(), "not begun")


def test_other_test_images_are_measured_and_students_are_not_trained_on_them(
    finished: Path, ledger_of: LedgerOf
) -> None:
    recipe = finished / "tiny.yaml"
    recipe.write_text(recipe.read_text().replace("test}", "pool}"))
    states_now = states(ledger_of())
    assert states_now.pop("promptkd") == "not begun"
    assert set(states_now.values()) == {"not measured"}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("pool/cat/0.png", {"promptkd": "not begun"}),
        ("labeled/cat/0.png", dict.fromkeys(("teacher", "coop", "promptkd"), "not begun")),
        ("test/cat/0.png", dict.fromkeys(ALL_FINISHED, "not measured")),
    ],
)
def test_images_count_with_their_contents(
    finished: Path, ledger_of: LedgerOf, file: str, changed: dict[str, str]
) -> None:
    other_picture(finished / file)
    assert states(ledger_of()) == {**ALL_FINISHED, **changed}


def test_a_measurement_belongs_to_a_run_and_to_test_images(
    finished: Path, ledger_of: LedgerOf
) -> None:
    other_picture(finished / "test/cat/0.png")
    ledger = ledger_of()
    (cell,) = ledger.plan.of("tiny", "coop")
    run = ledger.run_to_measure(cell)
    ledger.folder.begin(cell)
    images_hash = ledger._jobs[cell].test.images_hash
    result = replace(read_evaluation(run.folder)["baseline"], all=12.5, images_hash=images_hash)
    ledger.measured(cell, run, replace(result, images_hash="0" * 64))  # of other images
    assert states(ledger_of())["coop"] == "not measured"
    ledger.measured(cell, run, result)
    ledger = ledger_of(ledger.plan)
    assert (ledger.outcome(cell).status, ledger.outcome(cell).result) == ("finished", result)
    other_picture(finished / "test/dog/1.png")
    assert states(ledger_of())["coop"] == "not measured"


def test_a_damaged_evaluation_is_made_again(finished: Path, ledger_of: LedgerOf) -> None:
    (finished / "runs/tiny/03/eval.json").write_text("{")
    assert states(ledger_of()) == {**ALL_FINISHED, "coop": "not measured"}


def test_runs_that_were_interrupted_are_told_from_those_that_never_began(
    finished: Path, ledger_of: LedgerOf
) -> None:
    for number, row in (("02", "promptkd"), ("03", "coop")):
        file = finished / f"runs/tiny/{number}/provenance.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "status": "running"}))
        assert states(ledger_of())[row] == "interrupted"


def test_a_failure_is_known_until_the_cell_runs_again(
    filled: Path, plan_of: PlanOf, ledger_of: Any
) -> None:
    rows = "coop, {name: broken, role: teacher, set: {teacher.weights: broken.pt}}"
    (filled / "broken.pt").write_bytes(b"no weights")
    ledger = ledger_of(plan_of(rows, more="seeds: [1]\n"))
    for cell in ledger.plan.cells:
        ledger.folder.begin(cell)
        ledger.folder.write(cell, Failure(-9, ("a", "b")))
        assert ledger.outcome(cell).failure.exit_code == -9
    ledger.folder.begin(ledger.plan.cells[0])
    assert states(ledger) == {"coop": "not begun", "broken": "failed"}


@pytest.fixture
def folder(tmp_path: Path) -> SuiteFolder:
    return SuiteFolder(tmp_path / "suites" / "grid")


@pytest.mark.parametrize(
    ("row", "name"),
    [("CLIP (teacher's)", "CLIP-teacher-s-"), ("../../x", "x-"), ("Ω", "row-"), ("a/b", "a-b-")],
)
def test_a_label_is_not_a_path_and_has_files_of_its_own(
    plan_of: PlanOf, folder: SuiteFolder, row: str, name: str
) -> None:
    (cell,) = plan_of(f'{{name: "{row}", method: coop}}', more="seeds: [1]\n").cells
    assert folder.log(cell).parent == folder.path / "cells" / "tiny"
    assert re.fullmatch(f"{name}[0-9a-f]{{8}}-seed1.log", folder.log(cell).name)
    (other,) = plan_of("{name: a-b, method: coop}", more="seeds: [1]\n").cells
    assert folder.log(other).name == "a-b-seed1.log"


def test_records_come_back_as_they_were_written(plan_of: PlanOf, folder: SuiteFolder) -> None:
    (cell,) = plan_of("coop", more="seeds: [1]\n").cells
    assert (folder.failure(cell), folder.measurement(cell)) == (None, None)
    found = EvalResult("all", "last", 3, 50.0, None, None, None, 12.5, {"cat": 50.0})
    failure = Failure(-9, ("a", "b"))
    measurement = CellAccuracy("tiny/01", "1" * 64, "a {}", found)
    folder.begin(cell)
    folder.write(cell, failure)
    folder.write(cell, measurement)
    assert (folder.failure(cell), folder.measurement(cell)) == (failure, measurement)


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.pop("last_lines"),
        lambda values: values.update(exit_code="done"),
    ],
)
def test_a_damaged_record_is_an_error_that_says_what_to_do(
    plan_of: PlanOf, folder: SuiteFolder, damage: Callable[[dict[str, Any]], object]
) -> None:
    (cell,) = plan_of("coop", more="seeds: [1]\n").cells
    folder.begin(cell)
    folder.write(cell, Failure(1, ()))
    (file,) = folder.path.rglob("*.failure.json")
    values = json.loads(file.read_text())
    damage(values)
    file.write_text(json.dumps(values))
    with pytest.raises(DataError, match="Remove it and run the suite again"):
        folder.failure(cell)


def test_a_file_in_the_folders_place_is_said(plan_of: PlanOf, folder: SuiteFolder) -> None:
    (cell,) = plan_of("coop", more="seeds: [1]\n").cells
    folder.path.mkdir(parents=True)
    (folder.path / "cells").write_text("mine")
    with pytest.raises(ResourceError, match=r"cells/tiny could not be written"):
        folder.begin(cell)
    assert (folder.path / "cells").read_text() == "mine"
