"""Folders that are complete or absent."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdedge.errors import InUseError, RecipeError
from kdedge.files import new_folder


@pytest.mark.parametrize("is_there", [True, False])
def test_a_folder_that_failed_leaves_no_folder_above_it(tmp_path: Path, is_there: bool) -> None:
    above = tmp_path / "repository"
    if is_there:
        above.mkdir()
    with pytest.raises(ZeroDivisionError), new_folder(above / "model"):
        raise ZeroDivisionError
    assert above.exists() == is_there


def test_what_a_killed_process_left_is_deleted_and_takes_no_number(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from kdedge.files import new_folder

with new_folder(Path({str(tmp_path / "artifacts")!r}), is_numbered=True) as (part, _):
    (part / "model.onnx").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
    with new_folder(tmp_path / "artifacts", is_numbered=True) as (part, place):
        assert list((tmp_path / "artifacts").iterdir()) == [part]
    assert place() == tmp_path / "artifacts" / "01"


def test_a_folder_that_another_process_makes_is_told_of_at_the_start_or_at_the_end(
    tmp_path: Path,
) -> None:
    with new_folder(tmp_path / "one"), pytest.raises(InUseError, match="by another process"):
        new_folder(tmp_path / "one").__enter__()
    with pytest.raises(RecipeError, match="nothing is overwritten"), new_folder(tmp_path / "two"):
        (tmp_path / "two/kept").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["kept"]


def test_the_folder_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path, is_numbered=True) as (part, first):
        (part / "kept").touch()
        with new_folder(tmp_path, is_numbered=True) as (_, second):
            pass
    assert second() == tmp_path / "01"
    assert [path.name for path in first().iterdir()] == ["kept"]
    assert first() == tmp_path / "02"
