"""A folder that image files drop into: each is taken once, when nobody writes it any more."""

from __future__ import annotations

import errno
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import kdedge
from kdedge.errors import DataError, RecipeError
from kdedge.inference.classify import decode_input
from kdedge.runtime.preprocess import ImageError
from kdedge.runtime.video import without_password
from kdedge.serving.live_video import LiveVideo
from kdedge.serving.source import Frame, LatestFrameReader, image_stamps, new_files, open_frames

EVERY_S = 0.3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two old images."""
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
    files: Iterator[Any] = new_files(
        folder, {} if existing else image_stamps(folder), every_s=EVERY_S, every=1
    )
    worker.start()
    for item in files:
        found.append(item.file if isinstance(item, Frame) else item)
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
        time.sleep(3 * EVERY_S)
        (folder / "z.jpg").write_bytes(b"1")

    assert taken(folder, work, "z.jpg") == ["a.jpg", "z.jpg"]


def test_files_at_the_start_are_taken_when_asked_for(folder: Path) -> None:
    def work() -> None:
        time.sleep(4 * EVERY_S)
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
                time.sleep(EVERY_S / 3)
        ended.append(time.monotonic())

    assert taken(folder, work, "z.jpg") == ["z.jpg"]
    assert ended  # it had been written to its end


def test_a_file_that_is_written_anew_or_gets_an_images_name_is_new(folder: Path) -> None:
    def work() -> None:
        time.sleep(0.2)
        (folder / "old.jpg").write_bytes(b"22")
        (folder / "y.part").write_bytes(b"1")
        (folder / "y.part").rename(folder / "y.jpg")
        time.sleep(3 * EVERY_S)
        (folder / "z.jpg").write_bytes(b"1")

    found = taken(folder, work, "z.jpg")
    assert (set(found), len(found)) == ({"old.jpg", "y.jpg", "z.jpg"}, 3)


@pytest.mark.parametrize("is_alone", [False, True])
def test_a_file_that_left_is_forgotten_unless_the_folder_was_empty(
    folder: Path, *, is_alone: bool
) -> None:
    def work() -> None:
        time.sleep(0.2)
        away = [path.rename(folder.parent / path.name) for path in sorted(folder.iterdir())]
        if not is_alone:
            (folder / "y.jpg").write_bytes(b"1")
        time.sleep(3 * EVERY_S)
        for path in away:
            path.rename(folder / path.name)
        time.sleep(3 * EVERY_S)
        (folder / "z.jpg").write_bytes(b"1")

    files = taken(folder, work, "z.jpg")
    expected = ["z.jpg"] if is_alone else ["old.jpg", "older.png", "y.jpg", "z.jpg"]
    assert sorted(files) == expected


def test_a_folder_that_vanishes_is_lost_once_and_comes_back(folder: Path) -> None:
    def work() -> None:
        time.sleep(0.2)
        shutil.rmtree(folder)
        time.sleep(0.5)
        folder.mkdir()
        (folder / "z.jpg").write_bytes(b"1")

    lost, back, file = taken(folder, work, "z.jpg")
    assert (lost["event"], lost["reason"]) == ("lost", "no such file or directory")
    assert back["event"] == "back"
    assert 0.2 < back["after_s"] < 60
    assert file == "z.jpg"


def test_a_folder_that_cannot_be_listed_is_lost_until_it_can(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    files: Iterator[Any] = new_files(folder, {}, every=1, every_s=0.01)
    assert {next(files).file, next(files).file} == {"old.jpg", "older.png"}
    with monkeypatch.context() as share:
        share.setattr("os.listdir", fail)
        share.setattr("os.scandir", fail)
        lost = next(files)
    assert (lost["event"], lost["reason"]) == ("lost", "stale file handle")
    assert next(files)["event"] == "back"


def test_a_process_that_goes_elsewhere_watches_the_same_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.chdir(folder.parent)
    source = open_frames(folder.name, every=1, existing=True)
    monkeypatch.chdir("/")
    found: Any = next(source.items)
    assert source.name == folder.name
    assert found.file in ("old.jpg", "older.png")


# A folder that image files drop into


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (number, 0, 0))


class Camera:
    """A camera whose openings give these numbers of frames, and then fail."""

    def __init__(self, *openings: int | None, gate: threading.Event | None = None) -> None:
        self._openings, self._gate = list(openings), gate
        self.n_open = self.n_closed = 0

    def open(self) -> LiveVideo:
        if not self._openings:
            raise ConnectionError("unplugged")
        n_frames = self._openings.pop(0)
        if n_frames is None:
            raise ConnectionError("not there yet")
        self.n_open += 1
        return LiveVideo(False, self._frames(n_frames), self._close)

    def _frames(self, n_frames: int) -> Iterator[Callable[[], Image.Image]]:
        for number in range(1, n_frames + 1):
            yield partial(picture, number)
            if self._gate is not None:
                self._gate.set()
        raise ConnectionError("no such device")

    def _close(self) -> None:
        self.n_closed += 1


def watched(camera: Camera, every: int = 1) -> LatestFrameReader:
    return LatestFrameReader(camera.open(), camera.open, first_wait_s=0.001, every=every)


def test_a_camera_that_comes_back_goes_on_with_the_next_number() -> None:
    camera = Camera(1, None, None, 1, 1)
    items = watched(camera)
    found = [next(items) for _ in range(7)]
    kinds = [item.number if isinstance(item, Frame) else item["event"] for item in found]
    assert kinds == [1, "lost", "back", 2, "lost", "back", 3]
    assert found[1]["reason"] == "no such device"  # type: ignore[index]
    items.close()
    assert camera.n_open == camera.n_closed == 3


def test_a_camera_is_not_opened_for_a_refusal_and_closed_without_a_frame(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened, closed = [], []
    container = SimpleNamespace(
        streams=SimpleNamespace(video=["video"]), duration=None, close=lambda: closed.append(1)
    )
    av = SimpleNamespace(FFmpegError=OSError)
    av.open = lambda name, **_: opened.append(name) or container
    monkeypatch.setitem(sys.modules, "av", av)
    with pytest.raises(RecipeError, match="/dev/video0 is a camera"):
        open_frames("0", existing=True, every=1)
    with pytest.raises(RecipeError, match="rtsp://cam/1 is a stream"):
        open_frames("rtsp://me:secret@cam/1", existing=True, every=1)
    assert opened == []
    (tmp_path / "artifact.json").write_text("{}")
    with pytest.raises(DataError):
        next(kdedge.watch(tmp_path, 0))  # its model cannot be loaded
    assert (opened, closed) == (["/dev/video0"], [1])


def test_a_slow_reader_gets_the_newest_frame_and_the_number_of_others() -> None:
    camera = Camera(50)
    items = watched(camera)
    last = None
    for frame in items:  # the first one may be taken before there are others
        if not isinstance(frame, Frame):
            break
        last = frame
        while camera.n_closed == 0:  # the camera goes on meanwhile, to its end
            threading.Event().wait(0.001)
    items.close()
    assert last.number == 50
    image = decode_input(last.image)
    assert isinstance(image, Image.Image)
    assert image.getpixel((0, 0)) == (50, 0, 0)
    assert items.n_dropped in (48, 49)


def test_every_nth_frame_is_taken() -> None:
    items = watched(Camera(5), every=5)
    first, second = next(items), next(items)
    assert isinstance(first, Frame)
    assert (first.number, isinstance(second, Frame)) == (1, False)
    items.close()


def test_a_frame_that_is_no_image_is_given_with_its_reason() -> None:
    def broken() -> Image.Image:
        raise ImageError("its frames are too large")

    video = LiveVideo(False, iter([broken]), lambda: None)
    items = LatestFrameReader(video, Camera().open, every=1)
    frame = next(items)
    items.close()
    assert isinstance(frame, Frame)
    assert isinstance(decode_input(frame.image), ImageError)


def test_a_bug_in_the_thread_is_an_error_here() -> None:
    def frames() -> Iterator[Callable[[], Image.Image]]:
        yield partial(picture, 1)
        raise ZeroDivisionError

    items = LatestFrameReader(LiveVideo(False, frames(), lambda: None), Camera().open, every=1)
    with pytest.raises(ZeroDivisionError):
        list(items)


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://me:se@cret@cam/1?a=b@c") == "rtsp://cam/1?a=b@c"
    assert without_password("rtsp://cam/s?user=a&Passwd=secret") == "rtsp://cam/s?user=a&Passwd="
    assert without_password("http://cam:8080/video") == "http://cam:8080/video"
    assert (
        without_password("rtsp://cam/user=me&password=secret&n=1")
        == "rtsp://cam/user=me&password=&n=1"
    )
