"""A folder that image files drop into: each is taken once, when nobody writes it any more."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("watchfiles")

from kdedge.serving.source import Back, Lost, new_files

SETTLE_S, POLL_S = 0.3, 0.05


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two old pictures."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("old.jpg", "older.png"):
        (folder / name).write_bytes(b"1")
    return folder


def taken(
    folder: Path, work: Callable[[], None], until: str, *, existing: bool = False
) -> list[Any]:
    """What comes of a folder while something is done in it, up to a file of this name."""
    found: list[Any] = []
    worker = threading.Thread(target=work)
    files: Iterator[Any] = new_files(folder, existing=existing, settle_s=SETTLE_S, poll_s=POLL_S)
    worker.start()
    for item in files:
        found.append(item.name if isinstance(item, Path) else item)
        if found[-1] == until:
            break
    worker.join()
    return found


def test_new_files_are_taken_once_and_others_are_left_out(folder: Path) -> None:
    def work() -> None:
        time.sleep(0.2)
        (folder / "a.jpg").write_bytes(b"1")
        (folder / "notes.txt").write_text("1")
        (folder / ".b.jpg").write_bytes(b"1")
        (folder / "empty.jpg").touch()
        (folder / "c.jpg").mkdir()
        time.sleep(2 * SETTLE_S)
        (folder / "z.jpg").write_bytes(b"1")

    assert taken(folder, work, "z.jpg") == ["a.jpg", "z.jpg"]


def test_files_at_the_start_are_taken_when_asked_for(folder: Path) -> None:
    def work() -> None:
        time.sleep(4 * SETTLE_S)
        (folder / "z.jpg").write_bytes(b"1")

    found = taken(folder, work, "z.jpg", existing=True)
    assert (set(found), len(found)) == ({"old.jpg", "older.png", "z.jpg"}, 3)


def test_a_file_is_taken_when_it_no_longer_grows(folder: Path) -> None:
    ended: list[float] = []

    def work() -> None:
        time.sleep(0.2)
        with (folder / "z.jpg").open("wb") as file:
            for _ in range(10):
                file.write(b"x")
                file.flush()
                time.sleep(SETTLE_S / 3)
        ended.append(time.monotonic())

    assert taken(folder, work, "z.jpg") == ["z.jpg"]
    assert ended  # it had been written to its end


def test_a_file_that_is_written_anew_or_gets_an_images_name_is_new(folder: Path) -> None:
    def work() -> None:
        time.sleep(0.2)
        (folder / "old.jpg").write_bytes(b"22")
        (folder / "y.part").write_bytes(b"1")
        (folder / "y.part").rename(folder / "y.jpg")
        time.sleep(3 * SETTLE_S)
        (folder / "z.jpg").write_bytes(b"1")

    found = taken(folder, work, "z.jpg")
    assert (set(found), len(found)) == ({"old.jpg", "y.jpg", "z.jpg"}, 3)


def test_a_folder_that_vanishes_is_lost_once_and_comes_back(folder: Path) -> None:
    def work() -> None:
        time.sleep(0.2)
        shutil.rmtree(folder)
        time.sleep(0.5)
        folder.mkdir()
        (folder / "z.jpg").write_bytes(b"1")

    lost, back, file = taken(folder, work, "z.jpg")
    assert lost == Lost("no such file or directory")
    assert isinstance(back, Back)
    assert 0.2 < back.after_s < 60
    assert file == "z.jpg"
