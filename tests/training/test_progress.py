"""How far a long piece of work is, on a terminal and elsewhere."""

from __future__ import annotations

import io
import itertools
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import toy_run as toy
from PIL import Image

import kdedge
from kdedge.config.data_spec import ClassesSpec, DataSpec, SourceSpec
from kdedge.config.recipe import Recipe, StudentSpec
from kdedge.progress import progress
from kdedge.setup.classes import load_classes
from kdedge.setup.images import RecipeImages
from kdedge.setup.workspace import Workspace


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def move(seconds: float) -> None:
        now[0] += seconds

    return move


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kdedge")


def test_elsewhere_there_is_a_line_each_30_seconds_with_the_time_left(
    wait: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    with progress("reading data.test", 100, done=10) as advance:
        for done in range(11, 25):
            wait(10)
            advance(done)
    assert caplog.messages[0] == "reading data.test: 13 of 100, ETA 0:14:30"
    assert len(caplog.messages) == 4


def test_before_the_first_piece_is_done_nothing_is_said_of_the_time_left(
    wait: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    with progress("suite", 6, done=2) as advance:
        wait(40)
        advance(2, "first cell")
    assert caplog.messages == ["suite: 2 of 6, first cell"]


def test_work_of_less_than_30_seconds_says_nothing_elsewhere(
    wait: Callable[[float], None],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A forced color makes no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("reading data.test", 29) as advance:
        for done in range(1, 30):
            wait(1)
            advance(done)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, caplog.messages) == ("", "", [])


def _on_terminal(code: str) -> tuple[int, bytes, bytes]:
    """Exit code, stdout, and what a process shows on the terminal that is its stderr."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "PYTHONPATH": str(Path(kdedge.__file__).parents[1]), "TERM": "xterm"},
    )
    os.close(child)
    shown = b"".join(_read(parent))
    output, _ = process.communicate()
    os.close(parent)
    return process.returncode, output, shown


def _read(terminal: int) -> Iterator[bytes]:
    try:
        while block := os.read(terminal, 4096):
            yield block
    except OSError:
        pass  # how a terminal says that its other end is closed


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_training_on_a_terminal_has_a_bar_and_stdout_stays_empty(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    toy.train_toy(toy.make_run(tmp_path), toy.ToyMethod(step_s=0.02))
    assert capsys.readouterr().out == ""
    line = r"training \w+: \d+ of 21, ETA 0:00:\d+, [\d.,]+ images/s, epoch 1, loss "
    assert re.search(line, terminal.getvalue())


_NESTED = """
import time
from kdedge.progress import progress
with progress("outer", 3) as outer:
    time.sleep(0.2)
    outer(1, "loss 0.5")
    with progress("inner", 2) as inner:
        inner(1)
    time.sleep(0.2)
    outer(3)
"""


def test_a_bar_within_another_takes_its_line_and_gives_it_back() -> None:
    code, output, shown = _on_terminal(_NESTED)
    assert (code, output) == (0, b"")
    # From the terminal's point of view: each text begins on an emptied line
    before, _, after = shown.partition(b"inner")
    assert b"outer: 1 of 3, ETA 0:00:00, loss 0.5" in before
    assert before.rindex(b"\x1b[2K") > before.rindex(b"loss 0.5")
    assert b"outer" in after
    assert after.rindex(b"\x1b[2K") > after.rindex(b"3 of 3")


@pytest.fixture
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is 40 s further each time it is read."""
    readings = itertools.count(1000.0, 40.0)
    monkeypatch.setattr("time.monotonic", lambda: next(readings))


@pytest.mark.usefixtures("_slow")
def test_reading_images_says_how_far_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(40):
        file = tmp_path / ("dark", "bright")[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    recipe = Recipe(
        name="tiny",
        classes=ClassesSpec(names=("dark", "bright")),
        data=DataSpec(test=SourceSpec(folder=tmp_path)),
        student=StudentSpec(weights="builtin"),
    )
    workspace = Workspace(tmp_path / "runs", torch.device("cpu"), is_read_only=True)
    assert RecipeImages(recipe, load_classes(recipe), workspace).load("test") is not None
    assert [text.split(", ")[0] for text in caplog.messages] == [
        f"reading data.test: {done} of 40" for done in (16, 32, 40)
    ]


def test_bytes_are_shown_in_larger_units_and_an_unknown_total_is_left_out(
    wait: Callable[[float], None], caplog: pytest.LogCaptureFixture
) -> None:
    with progress("fetching a.tar", 3_000_000_000, in_bytes=True) as advance:
        wait(30)
        advance(1_500_000_000)
    with progress("fetching b.tar", None, in_bytes=True) as advance:
        wait(30)
        advance(2_500_000)
    assert caplog.messages == [
        "fetching a.tar: 1.5 GB of 3.0 GB, ETA 0:00:30",
        "fetching b.tar: 2.5 MB",
    ]
