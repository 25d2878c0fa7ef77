"""Numbered folders and files, and folders that are complete or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from kdedge._files import move_to_number, write_new_numbered_json
from kdedge._folders import new_folder


def test_the_next_number_follows_the_highest_and_names_that_are_none_are_passed_over(
    tmp_path: Path,
) -> None:
    for name in ("07", "9", "10", "²", "backup", "11.json"):  # "²" is a digit, and no number
        (tmp_path / name).mkdir()
    assert move_to_number(tmp_path / "backup", tmp_path) == tmp_path / "11"
    assert write_new_numbered_json(tmp_path, {}) == tmp_path / "12.json"


def test_what_a_killed_process_left_is_deleted_and_takes_no_number(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from kdedge._folders import new_folder

with new_folder(Path({str(tmp_path / "artifacts")!r}), is_numbered=True) as (part, _):
    (part / "model.onnx").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
    with new_folder(tmp_path / "artifacts", is_numbered=True) as (part, place):
        assert list((tmp_path / "artifacts").iterdir()) == [part]
    assert place() == tmp_path / "artifacts" / "01"


def test_the_folder_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path, is_numbered=True) as (part, first):
        (part / "kept").touch()
        with new_folder(tmp_path, is_numbered=True) as (_, second):
            pass
    assert second() == tmp_path / "01"
    assert [path.name for path in first().iterdir()] == ["kept"]
    assert first() == tmp_path / "02"
