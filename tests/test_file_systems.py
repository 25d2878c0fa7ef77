"""Network and FAT file systems lack calls that Linux's own have: files are written all the same."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from kdedge.errors import InUseError, RecipeError, ResourceError
from kdedge.files import new_folder, write_atomic, written_together
from kdedge.locks import is_locked, lock_file, lock_itself

CALLS = ("fsync", "flock")


def lack(monkeypatch: pytest.MonkeyPatch, number: int, *calls: str) -> None:
    """Replaces calls of the file system by ones that fail with an error."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    for name in calls:
        if name == "flock":
            monkeypatch.setattr(fcntl, name, fail)
        else:
            monkeypatch.setattr(os, name, fail)


@pytest.mark.parametrize(
    "number", [errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EBADF]
)
def test_files_folders_and_locks_need_none_of_these_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    lack(monkeypatch, number, *CALLS)
    write_atomic(tmp_path / "file", b"old")
    write_atomic(tmp_path / "file", b"new")
    with new_folder(tmp_path / "folder") as new:
        (new.part / "inside").touch()
    with lock_file(tmp_path / ".lock"):
        assert not is_locked(tmp_path / ".lock")
    with lock_itself(tmp_path), lock_itself(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_bytes() == b"new"
    assert new.final == tmp_path / "folder"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", ".lock"}


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    started, start = os.pipe()
    with lock_itself(tmp_path):
        child = os.fork()
        if child == 0:  # as openvino's import does; it lives until the pipe is closed
            os.close(writer)
            os.write(start, b"1")
            os.read(reader, 1)
            os._exit(0)
        os.read(started, 1)
    try:
        with lock_itself(tmp_path):
            pass
    finally:
        os.close(writer)
        os.waitpid(child, 0)


def test_each_lack_is_said_once() -> None:
    script = """
import errno, fcntl, logging, os, tempfile
from pathlib import Path
from kdedge.files import write_atomic
from kdedge.locks import lock_file

def fail(*_, **__):
    raise OSError(errno.EPERM, "")

logging.basicConfig(format="%(message)s")
os.fsync = fcntl.flock = fail
with tempfile.TemporaryDirectory() as folder, lock_file(Path(folder, ".lock")):
    for name in "ab":
        write_atomic(Path(folder, name), b"")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(" is limited: ")[2] for line in lines] == [
        "without file locks, two commands may write to one folder at the same time.",
        "a power failure may undo the last files written.",
    ]


def test_a_disk_that_fails_before_the_rename_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_atomic(file, b"old")
    lack(monkeypatch, errno.EIO, "fsync")
    with pytest.raises(ResourceError, match="Existing files are unchanged"):
        write_atomic(file, b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


# Folders that are complete or absent


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

with new_folder(Path({str(tmp_path / "artifacts")!r}), is_numbered=True) as new:
    (new.part / "model.onnx").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert len(list((tmp_path / "artifacts").iterdir())) == 1
    with new_folder(tmp_path / "artifacts", is_numbered=True) as new:
        assert list((tmp_path / "artifacts").iterdir()) == [new.part]
    assert new.final == tmp_path / "artifacts" / "01"


def test_a_folder_that_another_process_makes_is_told_of_at_the_start_or_at_the_end(
    tmp_path: Path,
) -> None:
    with new_folder(tmp_path / "one"), pytest.raises(InUseError, match="by another process"):
        new_folder(tmp_path / "one").__enter__()
    with pytest.raises(RecipeError, match="nothing is overwritten"), new_folder(tmp_path / "two"):
        (tmp_path / "two/kept").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["kept"]


def test_the_folder_of_a_process_that_lives_is_left_alone(tmp_path: Path) -> None:
    with new_folder(tmp_path, is_numbered=True) as first:
        (first.part / "kept").touch()
        with new_folder(tmp_path, is_numbered=True) as second:
            pass
    assert second.final == tmp_path / "01"
    assert [path.name for path in first.final.iterdir()] == ["kept"]
    assert first.final == tmp_path / "02"


@pytest.mark.parametrize("context", [new_folder, written_together])
def test_only_errors_of_the_files_inside_are_explained(tmp_path: Path, context: Any) -> None:
    with pytest.raises(FileNotFoundError), context(tmp_path / "new"):
        (tmp_path / "other").read_bytes()
    with pytest.raises(ResourceError, match="new could not be written: no such"):  # noqa: SIM117
        with context(tmp_path / "new") as new:
            Path(getattr(new, "part", new), "missing/file").touch()
    with pytest.raises(ResourceError, match="the disk is full"), context(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "")
    assert not list(tmp_path.iterdir())
