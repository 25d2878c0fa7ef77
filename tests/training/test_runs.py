"""Run folders: never overwritten, locked by one process, found again."""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kdedge
from kdedge.errors import DataError, RecipeError, ResourceError
from kdedge.runs.find import find_run, newest_run, runs_in
from kdedge.runs.folder import RunFolder, command_line, logged_to


def _create(root: Path, name: str = "line3", role: Any = "student", **values: Any) -> RunFolder:
    return RunFolder.create(root, name, role=role, recipe_text="name: x\n", provenance=values)


def _finish(run: RunFolder, at: str) -> RunFolder:
    run.finish()
    record = {**run.read_provenance().to_dict(), "finished_at": at}
    run.provenance.write_text(json.dumps(record))
    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("/venv/bin/kdedge bench", "kdedge bench"),
        ("/venv/lib/kdedge/__main__.py distill r.yaml", "kdedge distill r.yaml"),
        ("experiments/all.py 3", "all.py 3"),
        ("/venv/lib/ipykernel_launcher.py -f kernel-1.json", "notebook"),
    ],
)
def test_a_recorded_command_is_one_to_type(
    monkeypatch: pytest.MonkeyPatch, arguments: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", arguments.split())
    assert command_line() == expected.split()


def test_a_new_run_has_its_recipe_and_what_made_it(tmp_path: Path) -> None:
    run = _create(tmp_path, seed=7, device="cpu", hashes={"backbone": "ab"})
    assert run.path == tmp_path / "line3" / "01"
    assert run.recipe.read_text() == "name: x\n"
    record = json.loads(run.provenance.read_text())
    assert (record["seed"], record["device"], record["hashes"]) == (7, "cpu", {"backbone": "ab"})
    assert record["status"] == "running"
    assert record["command"] == command_line()
    assert record["versions"]["kdedge"] == kdedge.__version__
    assert record["versions"]["torch"]
    assert record["versions"]["open_clip_torch"]
    assert record["started_at"].endswith("+00:00")
    assert record["finished_at"] is None
    assert not run.is_finished
    assert run.weights.name == "student.safetensors"


def test_the_next_number_follows_the_highest_and_names_that_are_none_are_passed_over(
    tmp_path: Path,
) -> None:
    for name in ("07", "9", "10", "²", "backup"):  # "²" is a digit, and no number
        (tmp_path / "tiny" / name).mkdir(parents=True)
    assert [_create(tmp_path, "tiny").name for _ in range(2)] == ["tiny/11", "tiny/12"]


def test_finishing_keeps_the_record_and_adds_a_summary(tmp_path: Path) -> None:
    run = _create(tmp_path, seed=7)
    training = {"epochs": 1, "steps": 3, "seconds": 0.5, "final_loss": 2.0}
    run.finish(training=training)
    record = run.read_provenance().to_dict()
    assert record["seed"] == 7
    assert record["summary"] == {"training": training}
    assert record["finished_at"] > record["started_at"]
    assert RunFolder.open(run.path).is_finished


def test_a_finished_run_stays_finished(tmp_path: Path) -> None:
    run = _create(tmp_path)
    run.mark("interrupted")
    assert run.read_provenance().status == "interrupted"
    run.finish()
    run.mark("failed")
    assert run.is_finished


def test_a_run_that_goes_on_records_when_and_under_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _create(tmp_path, device="cpu")
    begun = run.read_provenance().to_dict()
    # Killed, so that its record says it is running still; then interrupted
    monkeypatch.setattr(sys, "argv", ["kdedge", "distill", "--resume"])
    RunFolder.open(run.path).resume()
    RunFolder.open(run.path).mark("interrupted")
    RunFolder.open(run.path).resume(device="cuda:0")
    record = run.read_provenance().to_dict()
    first, second = record.pop("resumed")
    assert record == begun
    assert first["command"] == ["kdedge", "distill", "--resume"]
    assert first["versions"] == begun["versions"]
    assert first["platform"] == begun["platform"]
    assert begun["started_at"] < first["resumed_at"] < second["resumed_at"]
    assert "device" not in first
    assert second["device"] == "cuda:0"


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a run folder"):
        RunFolder.open(tmp_path)
    (tmp_path / "provenance.json").write_text("[]")
    with pytest.raises(DataError, match="should be an object"):
        RunFolder.open(tmp_path)


def test_a_status_that_no_run_can_have_is_refused(tmp_path: Path) -> None:
    run = _create(tmp_path)
    text = run.provenance.read_text()
    run.provenance.write_text(text.replace('"status": "running"', '"status": "odd"'))
    with pytest.raises(DataError) as caught:
        RunFolder.open(run.path)
    message = str(caught.value)
    assert message.startswith(f"{run.provenance}: status")
    assert "'odd'" in message
    assert "'running', 'interrupted', 'failed' or 'finished'" in message


@pytest.mark.parametrize("where", ["file", "/proc/kdedge", "/sys/kdedge"])
def test_a_root_that_cannot_be_written_is_a_resource_error(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="another folder") as caught:
        _create(tmp_path / where)
    assert caught.value.exit_code == 7


def test_a_full_disk_is_a_resource_error(small_disk: Any) -> None:
    disk = small_disk(64)
    with pytest.raises(ResourceError, match="disk is full"):
        RunFolder.create(disk, "line3", role="student", recipe_text="x" * 100_000, provenance={})
    # Half a run is none
    assert list(runs_in(disk)) == []


def _say_and_fail(message: str) -> None:
    logging.getLogger("kdedge.training.loop.train").info(message)
    1 / 0  # noqa: B018


def test_messages_and_the_traceback_of_the_end_go_to_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = _create(tmp_path)
    logger = logging.getLogger("kdedge")
    before = (logger.level, list(logger.handlers))
    with pytest.raises(ZeroDivisionError), logged_to(run.log):
        _say_and_fail("going on")
    logging.getLogger("kdedge").warning("after")
    text = run.log.read_text()
    assert "INFO kdedge.training.loop.train: going on" in text
    assert "Traceback (most recent call last)" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "after" not in text
    assert (logger.level, logger.handlers) == before
    assert not any(record.exc_info for record in caplog.records)


def test_with_a_log_others_get_what_they_get_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for handlers in ([], [logging.StreamHandler()]):  # as in a script, and by the command line
        monkeypatch.setattr(logging.getLogger("kdedge"), "handlers", handlers)
        with logged_to(_create(tmp_path).log):
            logging.getLogger("kdedge.training").debug("written")
            logging.getLogger("kdedge.training").warning("said")
        assert capfd.readouterr().err == "said\n"


def test_a_log_on_a_full_disk_does_not_hide_the_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = _create(tmp_path)
    run.log.symlink_to("/dev/full")
    with pytest.raises(ZeroDivisionError), logged_to(run.log):
        _say_and_fail("hello")
    assert "Traceback" not in capfd.readouterr().err


def test_a_run_that_was_moved_behind_a_link_keeps_its_name_and_its_runs(tmp_path: Path) -> None:
    run = _create(tmp_path / "runs", "line3")
    run.path.rename(tmp_path / "elsewhere")
    run.path.symlink_to(tmp_path / "elsewhere")
    assert (run.name, run.root) == ("line3/01", tmp_path / "runs")


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Finished and unfinished runs, foreign folders and damaged records."""
    _finish(_create(tmp_path, "line3"), "2026-01-02T00:00:00+00:00")
    _finish(_create(tmp_path, "line3"), "2026-01-01T00:00:00+00:00")
    _create(tmp_path, "line3")
    _finish(_create(tmp_path, "big", role="teacher"), "2026-01-03T00:00:00+00:00")
    _create(tmp_path, "open").mark("interrupted")
    for name, text in {
        "line3/04": "{",
        "line3/05": '"text"',
        "line3/06": "",
        "x/01": "null",
    }.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "provenance.json").write_text(text)
    (tmp_path / "line3" / "07").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "file.txt").write_text("mine")
    (tmp_path / "loose").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "big/01"),
        ({"role": "student"}, "line3/01"),
        ({"name": "line3"}, "line3/01"),
        ({"name": "open"}, None),
        ({"name": "nothing"}, None),
    ],
)
def test_the_newest_run_is_the_one_that_finished_last(
    many: Path, options: dict[str, Any], expected: str | None
) -> None:
    run = newest_run(many, options.pop("name", None), **options)
    assert (run and run.name) == expected


def test_runs_are_in_the_order_of_their_numbers_and_a_copy_is_none(tmp_path: Path) -> None:
    run = _create(tmp_path)
    for name in ("01-copy", "²", "100", "99"):
        shutil.copytree(run.path, run.path.with_name(name))
    names = [found.name for found, _ in runs_in(tmp_path)]
    assert names == ["line3/01", "line3/99", "line3/100"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (None, "line3/01"),
        ("line3", "line3/01"),
        ("line3/03", "line3/03"),
        ("big", "big/01"),
        ("open/01", "open/01"),
    ],
)
def test_run_arguments_find_their_run(many: Path, argument: str | None, expected: str) -> None:
    assert find_run(argument, many).name == expected


@pytest.mark.parametrize("place", ["line3/02", "line3"])
def test_a_path_finds_its_run_whatever_the_root(
    many: Path, tmp_path_factory: pytest.TempPathFactory, place: str
) -> None:
    elsewhere = tmp_path_factory.mktemp("other")
    expected = "line3/02" if place == "line3/02" else "line3/01"
    assert find_run(str(many / place), elsewhere).name == expected


def test_a_recipes_file_stands_for_the_name_in_it(many: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "other.yaml"
    recipe.write_text("name: line3\nclasses: [cat, dog]\ndata: {}\nteacher: {backbone: RN50}\n")
    assert find_run(str(recipe), many).name == "line3/01"


def test_without_a_student_any_finished_run_is_taken(tmp_path: Path) -> None:
    _create(tmp_path, "line3").finish()
    _create(tmp_path, "big", role="teacher").finish()
    time.sleep(0.01)
    assert find_run(None, tmp_path).role == "student"
    _create(tmp_path / "b", "big", role="teacher").finish()
    assert find_run(None, tmp_path / "b").role == "teacher"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("lime3", "Did you mean line3"),
        ("line3/09", "Did you mean line3"),
        ("zzz", "Known: big, big/01, line3"),
        ("open", "open/01 (interrupted)"),
        ("", "neither"),
        ("..", "neither"),
    ],
)
def test_an_unknown_run_is_an_error_that_says_what_there_is(
    many: Path, argument: str, expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        find_run(argument, many)
    assert expected in str(caught.value)


def test_no_run_at_all_is_an_error_that_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="kdedge distill"):
        find_run(None, tmp_path)
    with pytest.raises(RecipeError, match="It has no runs"):
        find_run("line3", tmp_path)
