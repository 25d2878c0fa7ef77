"""Commands that are killed, interrupted, out of disk, or two at a time, in real processes."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Start = Callable[..., Any]
# Checkpoints so close that every kill finds another one; changes nothing that is learned
OFTEN = ("--set", "optim.checkpoint_every_s=0.001")
DISTILL = ("distill", "r.yaml", "--set", "optim.epochs=3", *OFTEN)
KEPT = ("student.safetensors", "class_vectors.safetensors")


def small(folder: Path) -> Path:
    """The project, with the unlabeled images of five steps an epoch."""
    for image in folder.glob("pool/*_[5-9].jpg"):
        image.unlink()
    return folder


@pytest.fixture
def project(project: Path) -> Path:
    return small(project)


@pytest.fixture(scope="session")
def reference(
    blank_project: Path,
    tmp_path_factory: pytest.TempPathFactory,
    copy_of: Callable[..., Path],
    _forking: Any,
) -> dict[str, bytes]:
    """What a run that nothing disturbs leaves."""
    folder = small(copy_of(blank_project, tmp_path_factory.mktemp("undisturbed") / "project"))
    process = _forking.start("distill", "r.yaml", "--set", "optim.epochs=3", cwd=folder)
    assert process.wait() == 0, process.stderr
    return results(folder / "runs" / "tiny" / "02")


def results(run: Path) -> dict[str, bytes]:
    return {name: (run / name).read_bytes() for name in KEPT}


def status(run: Path) -> str:
    return json.loads((run / "provenance.json").read_text())["status"]


def finished_students(runs: Path) -> list[Path]:
    found = sorted(path.parent for path in runs.glob("tiny/*/student.safetensors"))
    return [path for path in found if status(path) == "finished"]


def unfinished_files(folder: Path) -> list[str]:
    """Temporary files of atomic writes."""
    return [
        str(path) for path in folder.rglob(".*.*") if not path.name.startswith((".std", ".lock"))
    ]


def steps_done(run: Path) -> int:
    names = [path.name for path in run.glob("checkpoints/e*-s*.safetensors")]
    return max((5 * (int(name[1:3]) - 1) + int(name[5:10]) for name in names), default=-1)


def test_runs_killed_at_random_moments_end_as_an_undisturbed_one(
    project: Path, start: Start, reference: dict[str, bytes]
) -> None:
    seed = random.randrange(2**32)
    print(f"moments of the kills by random.Random({seed})")  # shown if the test fails
    rng = random.Random(seed)
    student, resumed = project / "runs/tiny/02", 0
    resuming = "runs/tiny/02: resuming where it stopped"
    for kill in range(4):
        process = start(*DISTILL, "--resume")
        if kill:
            process.wait_until(lambda: steps_done(student) > 3 * kill)  # noqa: B023 - called at once
        if kill > 1:  # the kill before may have left as many steps: this one loads them first
            process.wait_until(lambda: resuming in process.stderr)  # noqa: B023
        time.sleep(rng.uniform(0, 0.4 if kill == 0 else 0.05))
        process.send(signal.SIGKILL)
        process.wait()
        resumed += resuming in process.stderr
    process = start(*DISTILL, "--resume")
    assert process.wait() == 0, process.stderr
    assert resumed >= 2
    (finished,) = finished_students(project / "runs")
    assert results(finished) == reference
    lines = (finished / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["epoch"] for x in lines if '"kind"' in x] == [1, 2, 3]


def interrupt(process: Any, student: Path, signum: signal.Signals) -> None:
    """Sends a signal in the middle of the student's training, and looks at how that ends."""
    process.wait_until(lambda: steps_done(student) > 3)
    process.send(signum)
    assert process.wait() == 128 + signum
    assert process.stdout == ""
    message = process.stderr.splitlines()[-2:]
    assert message[0].startswith("kdedge: Interrupted at epoch ")
    assert "; the state is in runs/tiny/02/checkpoints/e0" in message[0]
    assert message[1] == "  Run the same command with --resume to go on from there."
    assert (status(student), unfinished_files(student)) == ("interrupted", [])
    assert "Interrupted at epoch " in (student / "log.txt").read_text()


def test_after_sigterm_in_training_resume_ends_as_an_undisturbed_run(
    project: Path, start: Start, reference: dict[str, bytes]
) -> None:
    student = project / "runs/tiny/02"
    interrupt(start(*DISTILL), student, signal.SIGTERM)
    again = start(*DISTILL, "--resume")
    assert again.wait() == 0, again.stderr
    assert "runs/tiny/02: resuming where it stopped." in again.stderr
    assert results(student) == reference


def test_after_control_c_in_training_a_new_run_leaves_the_interrupted_one_alone_and_names_it(
    project: Path, start: Start, reference: dict[str, bytes]
) -> None:
    student = project / "runs/tiny/02"
    interrupt(start(*DISTILL), student, signal.SIGINT)
    before = contents(student)
    again = start(*DISTILL)
    assert again.wait() == 0
    assert "runs/tiny/02 was interrupted; add --resume to continue it." in again.stderr
    assert contents(student) == before
    assert results(project / "runs/tiny/03") == reference


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_signal_after_training_loses_nothing_either(
    project: Path, start: Start, draw_image: Callable[..., None], reference: dict[str, bytes]
) -> None:
    # Large images: measuring takes long enough to be interrupted
    draw_image(project / "large.jpg", label=0, number=0, side_px=1200)
    enlarge = lambda _, to: shutil.copy(project / "large.jpg", to)  # noqa: E731
    shutil.copytree(project / "labeled", project / "large", copy_function=enlarge)
    command = (*DISTILL, "--set", "data.test.folder=large")
    student = project / "runs/tiny/02"
    process = start(*command)
    process.wait_until((student / "class_vectors.safetensors").exists)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.endswith(
        "kdedge: Interrupted in runs/tiny/02.\n"
        "  Run the same command with --resume to go on from there.\n"
    )
    assert (status(student), unfinished_files(project)) == ("interrupted", [])
    again = start(*command, "--resume")
    assert again.wait() == 0, again.stderr
    assert "already trained" in again.stderr
    assert results(student) == reference


@pytest.mark.parametrize(
    ("signum", "command"),
    [
        (signal.SIGINT, ("check", "r.yaml")),
        (signal.SIGINT, ("eval", "tiny/02", "--output", "out.json")),
        (signal.SIGTERM, ("teach", "r.yaml", "--set", "seed=7")),
        (
            signal.SIGTERM,
            (
                *("import", "public.tar", "--as", "promptkd", "--name", "public"),
                *("--weights", "student.pt", "--teacher", "tiny/01"),
            ),
        ),
    ],
    ids=["check", "eval", "teach", "import"],
)
def test_an_interrupted_command_leaves_nothing_half_written(
    trained: Path,
    start: Start,
    public_layout: ModuleType,
    command: tuple[str, ...],
    signum: signal.Signals,
) -> None:
    state = public_layout.promptkd_checkpoint(
        trained / "student.pt", trained / "runs/tiny/02/student.safetensors"
    )
    public_layout.save_public(trained / "public.tar", state)
    before = {path for path in trained.rglob("*") if path.is_file()}
    codes: set[int] = set()
    delay = 0.02
    # Later and later: a slow machine needs long to come to main, and must come to its end too
    while delay < 0.3 or not codes & {0, 2, 128 + signum}:
        process = start(*command)
        time.sleep(delay)
        delay *= 2
        process.send(signum)
        codes.add(process.wait())
        # Python itself prints what it swallows: a signal that meets a finalizer, and (as the tests
        # make errors of warnings) a file that a signal met between its open and its with.
        ends = r"(KeyboardInterrupt: ?|\S*Terminated: ?|ResourceWarning: .*?)\n"
        swallowed = rf"(?s)Exception ignored in.*?\n{ends}"
        said = re.sub(swallowed, "", process.stderr)
        assert "bug" not in said
        assert "Traceback" not in said
    # 2: out.json is there already; negative: the signal came before main or after its end
    assert codes <= {0, 2, -signum, 128 + signum}
    assert 128 + signum in codes
    assert unfinished_files(trained) == []
    new = {path for path in trained.rglob("*") if path.is_file() and not path.name.startswith(".")}
    for path in sorted(new - before):
        if path.suffix == ".json":
            json.loads(path.read_text())
    for run in trained.glob("runs/public/*"):
        assert status(run) == "finished"


def test_a_run_in_use_by_another_process_is_neither_resumed_nor_called_interrupted(
    project: Path, start: Start
) -> None:
    command = ("distill", "r.yaml", "--set", "student.optim.epochs=5000")
    first = start(*command)
    first.wait_until(lambda: steps_done(project / "runs/tiny/02") >= 0)
    first.send(signal.SIGSTOP)  # it keeps its run, and takes no time from the others
    second = start(*command, "--resume")
    assert second.wait() == 8
    in_use = f"kdedge: runs/tiny/02 is in use by another process: pid {first.pid} on "
    assert in_use in second.stderr
    assert [path.name for path in sorted(project.glob("runs/tiny/*"))] == ["01", "02"]
    third = start(*command)
    third.wait_until(lambda: steps_done(project / "runs/tiny/03") >= 0)
    assert "runs/tiny/02 is in use by another process. Starting a new run.\n" in third.stderr
    assert first.poll() is None


def test_two_runs_that_begin_at_once_get_folders_of_their_own(
    project: Path, start: Start, reference: dict[str, bytes]
) -> None:
    both = [start("distill", "r.yaml", "--set", "optim.epochs=3") for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    found = finished_students(project / "runs")
    assert len(found) == 2
    for run in found:
        assert results(run) == reference


@pytest.mark.parametrize("n_kilobytes", [4, 72, 200])
def test_a_full_disk_ends_the_run_and_with_room_it_goes_on(
    project: Path,
    start: Start,
    small_disk: Callable[[int], Path],
    reference: dict[str, bytes],
    n_kilobytes: int,
) -> None:
    disk = small_disk(n_kilobytes)
    process = start(*DISTILL, "--runs", str(disk))
    assert process.wait() == 7, process.stderr
    assert "the disk is full" in process.stderr
    assert "Traceback" not in process.stderr
    assert unfinished_files(disk) == []
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    again = start(*DISTILL, "--runs", str(disk), "--resume")
    assert again.wait() == 0, again.stderr
    (run,) = finished_students(disk)
    assert results(run) == reference
