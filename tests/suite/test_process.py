"""One process of a cell: its end, its log, its lock."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from kdedge import __version__
from kdedge.suite.process import Ended, run_kdedge

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _this_kdedge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(folder: Path, *arguments: str) -> Ended:
    return run_kdedge(arguments, log_file=folder / "cell.log", lock_file=folder / ".cell.lock")


def test_what_it_prints_and_how_it_ends_is_given(tmp_path: Path) -> None:
    ended = run(tmp_path, "--version")
    assert ended == Ended(0, f"kdedge {__version__}\n", (), None)


def test_the_message_of_its_error_is_given_and_the_log_grows(tmp_path: Path) -> None:
    (tmp_path / "cell.log").write_text("kdedge: an older error\n")
    ended = run(tmp_path, "show", "nothing", "--runs", str(tmp_path))
    message = f"kdedge: nothing is neither a run folder nor the name of a run in {tmp_path}."
    assert (ended.code, ended.stdout, ended.received) == (2, "", None)
    assert ended.last_lines == (message, "  There: no run.")
    log = (tmp_path / "cell.log").read_text()
    assert log == f"kdedge: an older error\n{message}\n  There: no run.\n"


def test_a_process_that_outlived_its_suite_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    descriptor = os.open(tmp_path / ".cell.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    released = []

    def release() -> None:
        released.append(time.monotonic())
        os.close(descriptor)

    timer = threading.Timer(0.5, release)
    timer.start()
    with caplog.at_level("INFO", logger="kdedge"):
        assert run(tmp_path, "--version").code == 0
    assert released
    assert "waiting for it to end" in caplog.text
    timer.join()
