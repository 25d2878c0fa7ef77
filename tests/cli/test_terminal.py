"""What a terminal of 80 columns shows, and what a pipe gets instead."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import kdedge as package


def run(*arguments: str, on_terminal: bool, **environment: str) -> str:
    """All that a command writes, in a process whose output is a terminal or a pipe."""
    root = str(Path(package.__file__).parents[1])
    command = [sys.executable, "-m", "kdedge", *arguments]
    clean = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    env = {**clean, "PYTHONPATH": root, "TERM": "xterm", "COLUMNS": "80", **environment}
    if not on_terminal:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False
        )
        return done.stdout.decode()
    parent, child = pty.openpty()
    process = subprocess.Popen(command, stdout=child, stderr=child, env=env)
    os.close(child)
    shown = b""
    try:
        while block := os.read(parent, 4096):
            shown += block
    except OSError:
        pass  # how a terminal says that its other end is closed
    process.wait()
    os.close(parent)
    return shown.decode().replace("\r\n", "\n")


def test_a_wide_table_is_wrapped_between_words_on_a_terminal_alone() -> None:
    shown = run("methods", on_terminal=True)
    piped = run("methods", on_terminal=False)
    assert max(map(len, shown.splitlines())) <= 80
    assert max(map(len, piped.splitlines())) > 80
    assert sorted(shown.split()) == sorted(piped.split())


@pytest.mark.parametrize(
    ("on_terminal", "environment", "color"),
    [
        (True, {}, "\x1b[31m"),
        (True, {"NO_COLOR": "1"}, ""),
        (True, {"TERM": "dumb"}, ""),
        (False, {}, ""),
        (False, {"FORCE_COLOR": "1"}, ""),
    ],
)
def test_errors_have_a_color_where_it_is_shown(
    on_terminal: bool, environment: dict[str, str], color: str
) -> None:
    said = run("predict", "artifact", "nowhere.jpg", on_terminal=on_terminal, **environment)
    end = "\x1b[0m" if color else ""
    assert said.startswith(f"{color}kdedge:{end} nowhere.jpg does not exist.\n")


def test_a_command_that_loads_pytorch_says_so_first(tmp_path: Path) -> None:
    command = ("distill", "demo", "--runs", str(tmp_path), "--device", "nope")
    assert run(*command, on_terminal=False) == (
        "Loading PyTorch.\nkdedge: --device nope is not a device.\n  Use cpu, cuda or cuda:0.\n"
    )
