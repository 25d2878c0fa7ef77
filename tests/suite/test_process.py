"""One process of a cell: its end, its log, its lock."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from kdedge import __version__
from kdedge.suite.process import CollectedSignals, Ended, KdedgeProcess

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _this_kdedge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(folder: Path, *arguments: str, **environment: str) -> Ended:
    process = KdedgeProcess(
        arguments,
        log_file=folder / "cell.log",
        lock_file=folder / ".cell.lock",
        environment=environment,
    )
    while (ended := process.poll()) is None:
        time.sleep(0.01)
    return ended


def test_what_it_prints_and_how_it_ends_is_given(tmp_path: Path) -> None:
    ended = run(tmp_path, "--version")
    assert ended == Ended(0, f"kdedge {__version__}\n", ())


def test_it_gets_its_own_variables_beside_this_processs(tmp_path: Path) -> None:
    ended = run(tmp_path, "show", "nothing", KDEDGE_RUNS=str(tmp_path / "mine"))
    assert ended.last_lines[0].endswith(f"nor the name of a run in {tmp_path / 'mine'}.")


def test_the_message_of_its_error_is_given_and_the_log_grows(tmp_path: Path) -> None:
    (tmp_path / "cell.log").write_text("kdedge: an older error\n")
    ended = run(tmp_path, "show", "nothing", "--runs", str(tmp_path))
    message = f"kdedge: nothing is neither a run folder nor the name of a run in {tmp_path}."
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.last_lines == (message, "  Known: none.")
    log = (tmp_path / "cell.log").read_text()
    assert log == f"kdedge: an older error\n{message}\n  Known: none.\n"


def test_another_process_with_its_lock_is_waited_for(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / ".cell.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    released = []

    def release() -> None:
        released.append(time.monotonic())
        os.close(descriptor)

    timer = threading.Timer(0.5, release)
    timer.start()
    assert run(tmp_path, "--version").code == 0
    assert released
    timer.join()


def test_a_signal_ends_work_that_may_be_ended_and_is_handed_on() -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    with CollectedSignals() as signals:
        assert signals.is_done(lambda: None)
        assert not signals.is_done(work)
        os.kill(os.getpid(), signal.SIGINT)
        assert (signals.received, signals.take()) == (
            signal.SIGTERM,
            [signal.SIGTERM, signal.SIGINT],
        )
