"""A folder that files drop into: each once, when it is complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kdedge.watching.drop_folder import Clock, DropFolder
from kdedge.watching.frame import Back, Lost


class Steps:
    """A clock whose sleep does the next thing instead, and ends the watching after the last."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.todo: list[Callable[[], object]] = []

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds
        if not self.todo:
            raise _Over
        self.todo.pop(0)()

    def clock(self) -> Clock:
        return Clock(now=lambda: self.seconds, sleep=self.sleep)


class _Over(Exception):  # noqa: N818
    pass


def nothing() -> None:
    pass


def seen(folder: Path, *todo: Callable[[], object], existing: bool = False) -> list[object]:
    steps = Steps()
    steps.todo = list(todo)
    found: list[object] = []
    watched: Iterator[Path | Lost | Back] = iter(
        DropFolder(folder, existing=existing, clock=steps.clock())
    )
    with contextlib.suppress(_Over):
        while True:
            item = next(watched)
            found.append(item.name if isinstance(item, Path) else item)
    return found


def put(path: Path, text: str, *, at_s: float = 1e9) -> Callable[[], None]:
    def write() -> None:
        path.write_text(text)
        os.utime(path, (at_s, at_s))

    return write


def test_a_file_is_taken_once_when_it_no_longer_grows(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    grows = [put(file, "x" * n, at_s=n) for n in (1, 2, 3)]
    assert seen(tmp_path, *grows, nothing) == []
    file.unlink()
    assert seen(tmp_path, *grows, nothing, nothing, nothing, nothing) == ["a.jpg"]


def test_files_at_the_start_are_left_out_or_taken_first(tmp_path: Path) -> None:
    put(tmp_path / "new.jpg", "b", at_s=2)()
    put(tmp_path / "old.png", "a", at_s=1)()
    assert seen(tmp_path, *[nothing] * 4) == []
    assert seen(tmp_path, *[nothing] * 4, existing=True) == ["old.png", "new.jpg"]


def test_a_file_of_the_start_that_still_grows_is_new(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", "half")()
    assert seen(tmp_path, put(tmp_path / "a.jpg", "whole"), *[nothing] * 3) == ["a.jpg"]


def test_a_file_that_gets_an_images_name_is_taken_at_once(tmp_path: Path) -> None:
    part, whole = tmp_path / "a.jpg.part", tmp_path / "a.jpg"
    steps = [put(part, "whole"), lambda: part.rename(whole)]
    assert seen(tmp_path, *steps) == ["a.jpg"]
    whole.unlink()
    part.write_text("there before the start")
    assert seen(tmp_path, lambda: part.rename(whole)) == ["a.jpg"]


def test_a_file_that_is_renamed_after_it_was_taken_is_not_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    rename = [lambda: file.rename(tmp_path / "b.jpg")]
    assert seen(tmp_path, put(file, "x"), *[nothing] * 3, *rename, *[nothing] * 3) == ["a.jpg"]


def test_a_file_that_is_written_anew_is_taken_again(tmp_path: Path) -> None:
    file = tmp_path / "latest.jpg"
    first, second = put(file, "x", at_s=1), put(file, "y", at_s=2)
    found = seen(tmp_path, first, *[nothing] * 3, second, *[nothing] * 3)
    assert found == ["latest.jpg", "latest.jpg"]


def test_other_files_hidden_ones_empty_ones_and_folders_are_left_out(tmp_path: Path) -> None:
    def fill() -> None:
        for name in (".hidden.jpg", "notes.txt", "clip.mp4"):
            (tmp_path / name).write_text("x")
        (tmp_path / "empty.jpg").touch()
        (tmp_path / "folder.jpg").mkdir()
        (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere")

    assert seen(tmp_path, fill, *[nothing] * 5) == []


def test_a_folder_that_vanishes_is_lost_once_and_comes_back(tmp_path: Path) -> None:
    folder, away = tmp_path / "in", tmp_path / "away"
    folder.mkdir()
    put(folder / "a.jpg", "x")()
    found = seen(
        folder,
        lambda: folder.rename(away),
        nothing,
        nothing,
        lambda: away.rename(folder),
        put(folder / "b.jpg", "y"),
        *[nothing] * 3,
    )
    assert found == [Lost("no such file or directory"), Back(1.5), "b.jpg"]


def test_a_network_drive_that_shows_no_files_for_a_while_brings_no_second_answers(
    tmp_path: Path,
) -> None:
    folder, away, empty = tmp_path / "in", tmp_path / "away", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()

    def unmount() -> None:
        folder.rename(away)
        empty.rename(folder)

    def mount() -> None:
        folder.rename(empty)
        away.rename(folder)

    wait = [nothing] * 3
    found = seen(folder, put(folder / "a.jpg", "x"), *wait, unmount, *wait, mount, *wait)
    assert found == ["a.jpg"]
