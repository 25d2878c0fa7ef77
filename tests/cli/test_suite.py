"""`kdedge suite`: real processes, one a cell; failures, kills and changes cost what they must."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]

CPU = torch.device("cpu")
Start = Callable[..., Any]
Run = Callable[..., Any]

SUITE = """\
name: small
recipes: [r.yaml]
methods:
  - zeroshot
  - {name: teacher, role: teacher}
  - promptkd
seeds: [1, 2]
set: {optim.epochs: 1}
"""
ONE_STUDENT = """\
name: one
recipes: [r.yaml]
methods: [promptkd]
seeds: [1]
"""
CRASHING = """\
name: small
recipes: [r.yaml]
methods:
  - {name: crashing, role: teacher, set: {teacher.weights: broken.pt}}
  - {name: CoOp, method: coop, set: {baseline.optim: {epochs: 1, batch_size: 4}}}
  - {name: broken, method: zeroshot, set: {student.weights: broken.pt}}
seeds: [1]
"""
COOP = """\
name: small
recipes: [r.yaml]
methods: [coop]
seeds: [1]
set: {baseline.optim: {epochs: 1, batch_size: 4}}
"""
LONG = """\
name: long
recipes: [r.yaml]
methods: [promptkd]
seeds: [1, 2]
set: {student.optim.epochs: 12, optim.checkpoint_every_s: 0.001}
"""


forked_cells = pytest.mark.usefixtures("forked_cells")


@pytest.fixture(autouse=True)
def _this_kdedge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def states(kdedge: Run, file: str = "s.yaml") -> dict[tuple[str, int], str]:
    done = kdedge("suite", file, "--dry-run", "--json")
    assert done.code == 0, done.err
    return {(cell["row"], cell["seed"]): cell["status"] for cell in json.loads(done.out)["cells"]}


def table_of(folder: Path) -> dict[str, dict[str, str]]:
    text = (folder / "table.csv").read_text()
    return {row["method"]: row for row in csv.DictReader(io.StringIO(text))}


def evaluations(runs: Path, role: str) -> list[dict[str, Any]]:
    """What eval.json says of all finished runs of a role, in the order of their seeds."""
    found = {}
    for file in runs.glob("*/*/eval.json"):
        record = json.loads((file.parent / "provenance.json").read_text())
        if record["role"] == role:
            found[record["seed"]] = json.loads(file.read_text())
    return [found[seed] for seed in sorted(found)]


def test_a_dry_run_lists_the_cells_and_writes_nothing(project: Path, kdedge: Run) -> None:
    (project / "s.yaml").write_text(SUITE)
    before = sorted(project.rglob("*"))
    done = kdedge("suite", "s.yaml", "--dry-run", "--suites", "mine", "--export")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["recipe", "method", "seed", "state"]
    assert [line.split() for line in lines[1:3]] == [
        ["tiny", "zeroshot", "1", "not", "begun"],
        ["tiny", "teacher", "1", "not", "begun"],
    ]
    following = "Next: kdedge suite s.yaml --suites mine --export"
    assert lines[-2:] == ["5 of 5 cells are left.", following]
    assert sorted(project.rglob("*")) == before


@pytest.mark.slow
@forked_cells
def test_a_grid_ends_in_one_table_and_is_not_run_again(project: Path, kdedge: Run) -> None:
    (project / "s.yaml").write_text(SUITE)
    done = kdedge("suite", "s.yaml", "--jobs", "2")
    assert done.code == 0, done.err
    table = table_of(project / "suites/small")
    runs = project / "runs"
    for row, kind in (("teacher", "teacher"), ("promptkd", "student")):
        found = [values[kind] for values in evaluations(runs, kind)]
        assert len(found) == 2
        for name in ("base", "novel", "all"):
            values = [each[name] for each in found]
            assert float(table[row][name]) == statistics.mean(values)
            assert float(table[row][f"{name}_std"]) == pytest.approx(statistics.stdev(values))
    plain = evaluations(runs, "student")[0]["zeroshot"]
    assert [float(table["zeroshot"][name]) for name in ("base", "novel")] == [
        plain["base"],
        plain["novel"],
    ]
    assert table["zeroshot"]["base_std"] == ""
    # Zero-shot CLIP, two teachers, which the students use again, and two students
    assert len(list(runs.glob("tiny/*/eval.json"))) == 5
    assert done.out.startswith("tiny\nmethod ")
    assert "Wrote suites/small (table.md, table.csv, results.json)\n" in done.out

    said = kdedge("suite", "s.yaml").err
    assert "5 of 5 cells are finished already.\n" in said
    shutil.rmtree(project / "suites")
    assert set(states(kdedge).values()) == {"not begun"}
    again = kdedge("suite", "s.yaml", "--json")  # each command finds its finished run
    assert again.code == 0
    record = json.loads(again.out)
    assert record == json.loads((project / "suites/small/results.json").read_text())
    assert {cell["status"] for cell in record["cells"]} == {"finished"}
    assert table_of(project / "suites/small") == table
    assert len(list(runs.glob("tiny/*/eval.json"))) == 5

    recipe = project / "r.yaml"
    recipe.write_text(recipe.read_text().replace("{prompt_depth: 2}", "{prompt_depth: 1}"))
    known = states(kdedge)
    # Zero-shot CLIP has the student's backbone, and none of its settings
    outdated = {cell for cell, state in known.items() if state == "outdated"}
    assert outdated == {("promptkd", seed) for seed in (1, 2)}
    assert set(known.values()) == {"finished", "outdated"}


@pytest.mark.slow
@forked_cells
def test_a_crashing_cell_costs_one_cell_and_is_tried_again(project: Path, kdedge: Run) -> None:
    (project / "broken.pt").write_bytes(b"not weights")
    (project / "s.yaml").write_text(CRASHING)
    done = kdedge("suite", "s.yaml", "--jobs", "2")
    assert done.code == 3, done.err
    assert "CoOp" in table_of(project / "suites/small")
    assert states(kdedge) == {
        ("crashing", 1): "failed",
        ("CoOp", 1): "finished",
        ("broken", 1): "failed",
    }
    ending = done.err.splitlines()[-4:]
    assert ending[0] == "kdedge: 2 of 3 cells failed."
    log = "suites/small/cells/tiny/crashing-seed1.log"
    assert ending[1] == f"  tiny, crashing, seed 1: exit code 3, {log}"
    cells = json.loads((project / "suites/small/results.json").read_text())["cells"]
    (crashed,) = (cell for cell in cells if cell["row"] == "crashing")
    assert "broken.pt" in crashed["last_lines"][0]

    (project / "broken.pt").unlink()
    os.link(project / "student.pt", project / "broken.pt")
    again = kdedge("suite", "s.yaml")
    assert again.code == 0, again.err
    assert set(states(kdedge).values()) == {"finished"}
    table = table_of(project / "suites/small")
    (teacher,) = evaluations(project / "runs", "teacher")
    assert float(table["broken"]["base"]) == teacher["zeroshot"]["base"]


@pytest.mark.slow
@forked_cells
def test_a_row_learns_from_its_own_teacher_even_if_that_did_not_learn(
    project: Path, kdedge: Run
) -> None:
    weak = "set: {data.split: all, optim.epochs: 1, teacher.optim: {lr: 1.0e-9}}\n"
    (project / "s.yaml").write_text(ONE_STUDENT + weak)
    done = kdedge("suite", "s.yaml", "--json")
    assert done.code == 0, done.err
    log = (project / "suites/one/cells/tiny/promptkd-seed1.log").read_text()
    assert "Using it anyway, because of --keep-teacher." in log
    (cell,) = json.loads(done.out)["cells"]
    record = json.loads((Path(cell["run"]) / "provenance.json").read_text())
    assert record["teacher_run"] == "tiny/01"


def children_of(pid: int) -> list[int]:
    """A process's children."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(file.parent.name))
    return found


def epoch_of(run: Path) -> int:
    """How far a run's newest checkpoint is."""
    names = [path.name for path in run.glob("checkpoints/e*.safetensors")]
    return max((int(name[1:].partition("-")[0]) for name in names), default=0)


@pytest.mark.slow
@forked_cells
def test_a_killed_process_costs_its_cell_alone(project: Path, start: Start, kdedge: Run) -> None:
    (project / "s.yaml").write_text(COOP.replace("[1]", "[1, 2]"))
    process = start("suite", "s.yaml")
    process.wait_until((project / "runs/tiny/01").exists)
    (child,) = children_of(process.pid)
    os.kill(child, signal.SIGKILL)
    assert process.wait() == 137, process.stderr
    assert "kdedge: 1 of 2 cells failed.\n  tiny, coop, seed 1: exit code -9, " in process.stderr
    assert "Its process was killed by signal 9." in process.stderr
    assert states(kdedge) == {("coop", 1): "failed", ("coop", 2): "finished"}
    assert table_of(project / "suites/small")["coop"]["n_seeds"] == "1"


@pytest.mark.slow
@forked_cells
def test_other_test_images_are_measured_and_nothing_is_trained_for_them(
    trained: Path, kdedge: Run
) -> None:
    (trained / "s.yaml").write_text(ONE_STUDENT)
    recipe = trained / "r.yaml"
    recipe.write_text(recipe.read_text().replace("folder: test}", "list: test.csv}"))
    images = sorted(trained.glob("test/*/*"))
    runs = sorted(trained.glob("runs/tiny/*"))
    found = []
    for part in (images, images, images[::2]):
        lines = [f"{path.relative_to(trained)},{path.parent.name}" for path in part]
        text = "\n".join(["path,label", *lines, ""])
        if not found or part != images:
            (trained / "test.csv").write_text(text)
        done = kdedge("suite", "s.yaml", "--json")
        assert done.code == 0, done.err
        (cell,) = json.loads(done.out)["cells"]
        is_said = f"{cell['run']} was measured on other images; measuring it again." in done.err
        found.append((cell["result"]["n_images"], is_said))
        plain = kdedge("eval", cell["run"], "--json", "--set", "data.test={list: test.csv}")
        assert cell["result"]["all"] == json.loads(plain.out)["all"]
    assert found == [(len(images), True), (len(images), False), (len(images[::2]), True)]
    assert sorted(trained.glob("runs/tiny/*")) == runs


@pytest.fixture(scope="session")
def undisturbed(blank_project: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table that nothing disturbs."""
    from kdedge.config.load import load_recipe, parse_overrides
    from kdedge.paper.suite.plan import make_plan
    from kdedge.paper.suite.spec import load_suite
    from kdedge.paper.suite.state import Outcome
    from kdedge.paper.suite.tables import make_lines, to_csv
    from kdedge.runs.results import read_evaluation
    from kdedge.setup.workspace import Workspace
    from kdedge.training.distill import distill_student

    folder = shutil.copytree(blank_project, tmp_path_factory.mktemp("undisturbed") / "project")
    (folder / "s.yaml").write_text(LONG.replace("0.001", "60.0"))
    plan, outcomes = make_plan(load_suite(folder / "s.yaml")), {}
    for cell in plan.cells:
        given = [f"seed={cell.seed}", "student.optim.epochs=12"]
        recipe = load_recipe(folder / "r.yaml", parse_overrides(given))
        run = distill_student(recipe, Workspace(folder / "runs", CPU))
        outcomes[cell] = Outcome("finished", result=read_evaluation(run)["student"])
    return to_csv(make_lines(plan, outcomes)).encode()


FAR = """\
name: far
recipes: [other.yaml]
methods:
  - zeroshot
  - {name: CoOp, method: coop, trained_on: r.yaml}
seeds: [1]
set: {baseline.optim: {epochs: 1, batch_size: 4}}
"""
OTHER = """\
name: other
classes: [hound, grey cat]
data: {test: {list: two.csv}, split: all}
student: {weights: student.pt}
"""


@pytest.fixture
def far(project: Path) -> Path:
    """A suite whose second row is trained on `tiny` and measured on another's classes."""
    (project / "two.csv").write_text(
        "test/dog/0.jpg,hound\ntest/cat/0.jpg,grey cat\ntest/dog/1.jpg,hound\n"
    )
    (project / "other.yaml").write_text(OTHER)
    (project / "s.yaml").write_text(FAR)
    return project


@pytest.mark.slow
@forked_cells
def test_a_row_trained_on_one_recipe_is_measured_on_the_others(far: Path, kdedge: Run) -> None:
    done = kdedge("suite", "s.yaml", "--jobs", "2", "--json")
    assert done.code == 0, done.err
    cells = {(cell["recipe"], cell["row"]): cell for cell in json.loads(done.out)["cells"]}
    assert len(cells) == 3
    assert sorted(path.name for path in far.glob("runs/*/[0-9]*")) == ["01", "01"]
    measured, trained = cells["other", "CoOp"], cells["tiny", "CoOp"]
    assert measured["run"] == trained["run"]
    changes = ("classes=[hound, grey cat]", f"data.test={{list: {far}/two.csv}}")
    plain = kdedge(
        *("eval", trained["run"], "--json", "--set", "data.split=all"),
        *(word for change in changes for word in ("--set", change)),
    )
    expected = json.loads(plain.out)
    assert expected["n_images"] == 3
    assert measured["result"]["all"] == expected["all"]
    lines = json.loads((far / "suites/far/results.json").read_text())["lines"]
    assert [(line["recipe"], line["row"]) for line in lines] == [
        ("tiny", "CoOp"),
        ("other", "zeroshot"),
        ("other", "CoOp"),
    ]
    again = kdedge("suite", "s.yaml")
    assert "3 of 3 cells are finished already.\n" in again.err


@pytest.mark.slow
@forked_cells
def test_what_a_failed_training_was_for_fails_with_it(far: Path, kdedge: Run) -> None:
    (far / "broken.pt").write_bytes(b"not weights")
    suite = far / "s.yaml"
    broken = suite.read_text().replace("r.yaml}", "r.yaml, set: {student.weights: broken.pt}}")
    suite.write_text(broken)
    done = kdedge("suite", "s.yaml", "--export")  # of which nothing can be exported
    assert done.code == 3, done.err
    assert "kdedge: 2 of 3 cells failed.\n" in done.err
    assert "tiny, CoOp, seed 1, whose run this cell measures, did not finish." in done.err
    assert states(kdedge) == {("CoOp", 1): "failed", ("zeroshot", 1): "finished"}


@pytest.mark.slow
@forked_cells
@pytest.mark.timeout(600)
def test_two_running_cells_are_interrupted_and_killed_and_end_in_the_same_table(
    project: Path, start: Start, kdedge: Run, undisturbed: bytes
) -> None:
    (project / "s.yaml").write_text(LONG)
    command = ("suite", "s.yaml", "--jobs", "2")

    def both_beyond(epoch: int) -> bool:
        files = project.glob("runs/tiny/*/provenance.json")
        students = [file.parent for file in files if '"role": "student"' in file.read_text()]
        return len(students) == 2 and min(map(epoch_of, students)) > epoch

    process = start(*command)
    process.wait_until(lambda: both_beyond(1))
    process.send(signal.SIGINT)
    assert process.wait() == 130, process.stderr
    assert process.stderr.endswith(
        "kdedge: Interrupted in tiny, promptkd, seed 1 and tiny, promptkd, seed 2; 0 of 2 cells are"
        " finished.\n  Run the same command to continue.\n"
    )
    assert set(states(kdedge).values()) == {"interrupted"}

    process = start(*command)
    process.wait_until(lambda: both_beyond(3))
    children = children_of(process.pid)
    assert len(children) == 2
    process.send(signal.SIGKILL)
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert set(states(kdedge).values()) == {"interrupted"}

    process = start(*command)
    process.wait_until(lambda: both_beyond(5))
    children = children_of(process.pid)
    process.send(signal.SIGKILL)
    process.wait()
    for child in children:
        os.kill(child, signal.SIGTERM)  # the cells' processes went on alone

    process = start(*command)
    assert process.wait() == 0, process.stderr
    assert (project / "suites/long/table.csv").read_bytes() == undisturbed
    assert len(evaluations(project / "runs", "student")) == 2
    assert len(list(project.glob("runs/tiny/*/provenance.json"))) == 4
    for log in project.glob("suites/long/cells/tiny/*.log"):
        assert log.read_text().count("resuming where it stopped.") == 3


@pytest.mark.slow
@forked_cells
def test_two_processes_do_not_run_one_suite_at_once(project: Path, start: Start) -> None:
    (project / "s.yaml").write_text(LONG)
    first = start("suite", "s.yaml")
    first.wait_until((project / "runs/tiny/01").exists)
    second = start("suite", "s.yaml")
    assert second.wait() == 8
    assert "kdedge: suites/long is in use by another process: pid" in second.stderr
    first.send(signal.SIGTERM)
    assert first.wait() == 143, first.stderr
