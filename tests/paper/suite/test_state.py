"""How cells stand: what their last processes left, and whether it is still of the same files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdedge.errors import ResourceError
from kdedge.paper.suite.state import Outcome
from kdedge.records.evaluation import EvalResult

StateOf = Callable[..., Any]
PlanOf = Callable[..., Any]

ROWS = ("teacher", "coop", "promptkd")


def states(state: Any) -> dict[str, str]:
    return {cell.row: outcome.status for cell, outcome in state.outcomes.items()}


@pytest.fixture
def ended(finished: Path, state_of: StateOf) -> Path:
    """The project with the outcomes of its suite's cells."""
    state = state_of()
    for cell, number in zip(state.plan.cells, ("01", "03", "02"), strict=True):
        state.begin(cell)
        run = str(finished / "runs/tiny" / number)
        state.write(cell, Outcome("finished", state.inputs(cell).hash, run))
    assert states(state_of()) == dict.fromkeys(ROWS, "finished")
    return finished


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("epochs: 2", "epochs: 3", ROWS),
        ("shots: 4", "shots: 2", ROWS),
        ("{prompt_depth_text: 2", "{prompt_depth_text: 1", ("promptkd", "teacher")),
        ("_depth: 2}", "_depth: 2, losses: {kl: {temperature: 2.0}}}", ("promptkd",)),
        ("test}", "pool}", ROWS),
        ("optim:", "gates: {max_drop: 2.0}\noptim:", ()),
        ("optim:", "# nothing\noptim:", ()),
    ],
)
def test_a_recipe_that_has_changed_makes_cells_outdated(
    ended: Path, state_of: StateOf, old: str, new: str, changed: tuple[str, ...]
) -> None:
    recipe = ended / "tiny.yaml"
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new))
    left = {row for row, state in states(state_of()).items() if state == "outdated"}
    assert left == set(changed)


@pytest.mark.parametrize("file", ["pool/cat/0.png", "labeled/cat/0.png", "test/cat/0.png"])
def test_images_count_with_their_contents(ended: Path, state_of: StateOf, file: str) -> None:
    path = ended / file
    os.utime(path)
    assert states(state_of()) == dict.fromkeys(ROWS, "finished")
    pixels = np.random.default_rng(99).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path.unlink()  # it is a link
    Image.fromarray(pixels).save(path)
    assert states(state_of()) == dict.fromkeys(ROWS, "outdated")


def test_other_weights_and_a_lost_run_make_cells_outdated(ended: Path, state_of: StateOf) -> None:
    (ended / "runs/tiny/03/provenance.json").unlink()
    assert states(state_of()) == {**dict.fromkeys(ROWS, "finished"), "coop": "outdated"}
    weights = (ended / "teacher.pt").read_bytes()
    (ended / "teacher.pt").unlink()
    (ended / "teacher.pt").write_bytes(weights + b" ")
    assert states(state_of()) == dict.fromkeys(ROWS, "outdated")


def test_of_a_teachers_run_its_weights_alone_count(
    finished: Path, plan_of: PlanOf, state_of: StateOf
) -> None:
    recipe, run = finished / "tiny.yaml", finished / "runs/tiny/01"
    recipe.write_text(re.sub("teacher: .*", "teacher: {run: runs/tiny/01}", recipe.read_text()))
    state = state_of(plan_of("promptkd", more="seeds: [1]\n"))
    (cell,) = state.plan.cells
    state.begin(cell)
    state.write(cell, Outcome("finished", state.inputs(cell).hash, str(run)))
    for file, expected in (("report.html", "finished"), ("teacher.safetensors", "outdated")):
        (run / file).write_bytes(b"new")
        assert states(state_of(state.plan)) == {"promptkd": expected}


def test_what_began_is_told_from_what_did_not_and_a_failure_is_known_until_it_runs_again(
    ended: Path, state_of: StateOf
) -> None:
    state = state_of()
    teacher, coop, promptkd = state.plan.cells
    state.begin(teacher)
    state.write(coop, Outcome("failed", exit_code=-9, last_lines=("a", "b")))
    state.file(promptkd, ".json").unlink()
    state.file(promptkd, ".yaml").unlink()
    state = state_of(state.plan)
    assert states(state) == {"teacher": "interrupted", "coop": "failed", "promptkd": "not begun"}
    failed = state.outcomes[coop]
    assert (failed.exit_code, failed.last_lines, failed.result) == (-9, ("a", "b"), None)
    state.begin(coop)
    assert states(state)["coop"] == "interrupted"
    assert states(state_of(state.plan))["coop"] == "interrupted"


def test_an_outcome_comes_back_as_it_was_written_and_a_damaged_one_is_as_none(
    ended: Path, state_of: StateOf, caplog: pytest.LogCaptureFixture
) -> None:
    state = state_of()
    cell = state.plan.cells[0]
    result = EvalResult("all", "last", 3, 50.0, None, None, None, 12.5, {"cat": 50.0})
    outcome = replace(state.outcomes[cell], result=result, seconds=0.5)
    state.write(cell, outcome)
    assert state_of(state.plan).outcomes[cell] == outcome
    file = state.file(cell, ".json")
    for damage in ({"status": 5}, {"result": "good"}):
        file.write_text(json.dumps({**json.loads(file.read_text()), **damage}))
        assert states(state_of())["teacher"] == "interrupted"
        assert str(file) in caplog.text


def test_cells_whose_files_cannot_be_read_are_never_finished(
    plan_of: PlanOf, state_of: StateOf, tmp_path: Path
) -> None:
    state = state_of(plan_of("coop", more="seeds: [1]\n"))  # without any image
    (cell,) = state.plan.cells
    assert state.inputs(cell).hash == ""
    state.begin(cell)
    for name in ("provenance.json", "recipe.yaml"):
        (tmp_path / name).touch()
    state.write(cell, Outcome("finished", "", str(tmp_path)))
    assert states(state_of(state.plan)) == {"coop": "outdated"}


@pytest.mark.parametrize(
    ("row", "name"),
    [("CLIP (teacher's)", "CLIP-teacher-s-"), ("../../x", "x-"), ("Ω", "row-"), ("a/b", "a-b-")],
)
def test_a_label_is_not_a_path_and_has_files_of_its_own(
    plan_of: PlanOf, state_of: StateOf, row: str, name: str
) -> None:
    state = state_of(plan_of(f'{{name: "{row}", method: coop}}', more="seeds: [1]\n"))
    (cell,) = state.plan.cells
    file = state.file(cell, ".log")
    assert file.parent == state.folder / "cells" / "tiny"
    assert re.fullmatch(f"{name}[0-9a-f]{{8}}-seed1.log", file.name)
    (other,) = plan_of("{name: a-b, method: coop}", more="seeds: [1]\n").cells
    assert state.file(other, ".log").name == "a-b-seed1.log"


def test_a_file_in_the_folders_place_is_said(plan_of: PlanOf, state_of: StateOf) -> None:
    state = state_of(plan_of("coop", more="seeds: [1]\n"))
    state.folder.mkdir(parents=True)
    (state.folder / "cells").write_text("mine")
    with pytest.raises(ResourceError, match=r"cells/tiny could not be written"):
        state.begin(state.plan.cells[0])
    assert (state.folder / "cells").read_text() == "mine"
