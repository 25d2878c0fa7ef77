"""What to watch: a camera, a stream, a video, or a folder that files drop into."""

from __future__ import annotations

import inspect
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from PIL import Image

from kdedge.data.sources import IMAGE_EXTENSIONS, read_file
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.files import printable
from kdedge.inference.classify import ImageInput
from kdedge.runtime.preprocess import UnusableImage, decode_image, more_extensions
from kdedge.runtime.video import (
    LiveVideo,
    StreamLost,
    frames_of_video,
    import_pyav,
    open_live,
    without_password,
)

_LOOK_EVERY_S = 1.0
"""Seconds between two looks at a folder; a file that has not changed in between is complete."""

_LONGEST_WAIT_S = 30.0
_END_S = 2.0

_CAMERA = re.compile(r"/dev/(video\d|v4l/)")

ImageStamps = dict[Path, tuple[int, int]]
"""Files with their time of change, nanoseconds, and size."""

FrameSourceKind = Literal["camera", "stream", "video", "folder"]


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes:
        number: counted from 1 over all frames of the source, the dropped ones too.
        time: when it was read, seconds since 1970.
        image: RGB, or why there is none.
        seconds: position in a video; None for other sources.
        file: file name in a folder; None for other sources.
    """

    number: int
    time: float
    image: ImageInput
    seconds: float | None = None
    file: str | None = None


@dataclass(frozen=True)
class SourceLost:
    """The source went away; it is tried again until it is back.

    Attributes:
        reason: why, as a sentence without a full stop.
    """

    reason: str


@dataclass(frozen=True)
class SourceRestored:
    """The source is there again.

    Attributes:
        after_s: seconds since it was lost.
    """

    after_s: float


@dataclass(frozen=True)
class FrameSource:
    """An open source.

    Attributes:
        name: for output; an address is without its password.
        kind: what it is.
        items: frames, and when the source is lost and back.
        n_dropped: number of frames so far that newer ones replaced, of a camera or stream.
        free: frees a camera or stream whose items have not begun.
    """

    name: str
    kind: FrameSourceKind
    items: Generator[Frame | SourceLost | SourceRestored, None, None]
    n_dropped: Callable[[], int] = lambda: 0
    free: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Ends the items, and with them the camera or stream."""
        if inspect.getgeneratorstate(self.items) == inspect.GEN_CREATED:
            self.free()  # a generator that has not begun ends without its `finally`
        self.items.close()


def open_source(text: str, *, every: int = 1, existing: bool = False) -> FrameSource:
    """Opens what a text names.

    Args:
        text: a camera's number or /dev/video0, an address (rtsp, http), a video, or a folder.
        every: take the first and then every Nth frame or file.
        existing: of a folder, take the files that are there already, too.

    Raises:
        DataError: there is no such file or folder, or it cannot be read.
        RecipeError: `existing` for what is no folder.
        SetupError: PyAV is not installed; or the camera or address cannot be opened.
    """
    if re.fullmatch(r"\d{1,3}", text):
        text = f"/dev/video{int(text)}"
    kind = _kind_of(text)
    is_live = kind in ("camera", "stream")
    name = without_password(text) if is_live else printable(text)
    if existing and kind != "folder":
        raise RecipeError(f"existing is for a folder, and {name} is a {kind}.\n  Leave it out.")
    if is_live:
        return _live(text, name, kind, every)
    if kind == "folder":
        seen = {} if existing else image_stamps(Path(text))  # now: files may come at once
        return FrameSource(name, kind, _files(Path(text), every, seen))
    import_pyav()  # fail before the model is loaded
    return FrameSource(name, kind, _video(text, every))


def _kind_of(text: str) -> FrameSourceKind:
    """What a text names, which is not opened."""
    if "://" in text:
        return "stream"
    path = Path(text)
    try:
        if _CAMERA.match(text) or path.is_char_device():
            return "camera"
        if text and path.is_dir():
            with os.scandir(path):  # it may be listed
                return "folder"
        is_there = path.is_file()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{printable(text)} cannot be read: {str(reason).lower()}.\n"
            "  Name a file or folder that you may read."
        ) from error
    if not text or not is_there:
        raise DataError(
            f"{printable(text) or 'SOURCE'} {'does not exist' if text else 'is empty text'}.\n"
            "  Name a camera (0 or /dev/video0), an address (rtsp://...), a video, or a folder."
        )
    return "video"


def _live(address: str, name: str, kind: FrameSourceKind, every: int) -> FrameSource:
    try:
        video = open_live(address)
    except StreamLost as lost:
        if kind == "camera":
            remedy = "Check that it is connected, not in use, and readable for this user (ls -l"
            remedy += " /dev/video*)."
        else:
            remedy = "Check the address, its user and password, and that the camera is on."
        raise SetupError(f"{name} cannot be opened: {lost.reason}.\n  {remedy}") from lost
    if video.has_end:
        video.close()
        return FrameSource(name, "video", _video(address, every))
    newest = LatestFrameReader(video, partial(open_live, address), every=every)
    return FrameSource(name, kind, iter(newest), lambda: newest.n_dropped, video.close)


def _video(file: str, every: int) -> Generator[Frame, None, None]:
    """The frames of a video, here or of a web server; at damage, a last one without an image."""
    number = 0
    try:
        for number, seconds, image in frames_of_video(file, every=every):
            yield Frame(number, time.time(), image, seconds=seconds)
    except UnusableImage as error:
        yield Frame(number + 1, time.time(), error)


def _files(
    folder: Path, every: int, seen: ImageStamps
) -> Generator[Frame | SourceLost | SourceRestored, None, None]:
    """The pictures of a folder, numbered; it never ends."""
    number = 0
    for item in new_files(folder, seen):
        if not isinstance(item, Path):
            yield item
            continue
        number += 1
        if (number - 1) % every == 0:
            image = _read(lambda path=item: decode_image(read_file(path)))  # type: ignore[misc]
            yield Frame(number, time.time(), image, file=printable(item.name))


def new_files(
    folder: Path, seen: ImageStamps, *, every_s: float = _LOOK_EVERY_S
) -> Generator[Path | SourceLost | SourceRestored, None, None]:
    """Yields new image files, and when the folder is gone and back; never ends.

    A file is taken once, when it is as at the look before; one that is written anew is new.
    Subfolders and hidden files are left out.

    Args:
        folder: the folder.
        seen: the files that are not new.
        every_s: seconds between two looks.
    """
    before: ImageStamps = {}
    while True:
        while folder.is_dir():
            present = image_stamps(folder)
            if present:  # an empty folder may be a share that will be mounted again
                seen = {path: stamp for path, stamp in seen.items() if path in present}
            for path, stamp in present.items():
                if stamp == before.get(path) and stamp != seen.get(path):
                    seen[path] = stamp
                    yield path
            before = present
            time.sleep(every_s)
        gone = time.monotonic()
        yield SourceLost("no such file or directory")
        while not folder.is_dir():
            time.sleep(every_s)
        yield SourceRestored(time.monotonic() - gone)


def image_stamps(folder: Path) -> ImageStamps:
    """Time of change and size of the folder's image files, the oldest first."""
    stamps: ImageStamps = {}
    for path in folder.glob("*"):
        extension = path.suffix[1:].lower()
        is_image = extension in IMAGE_EXTENSIONS or extension in more_extensions()
        if is_image and not path.name.startswith("."):
            try:
                status = path.stat()
            except OSError:  # deleted meanwhile
                continue
            if status.st_size and path.is_file():
                stamps[path] = (status.st_mtime_ns, status.st_size)
    return dict(sorted(stamps.items(), key=lambda item: item[1]))


def _read(read: Callable[[], ImageInput]) -> ImageInput:
    try:
        return read()
    except UnusableImage as error:
        return error


_Taken = tuple[int, float, Callable[[], Image.Image]]


class LatestFrameReader:
    """Reads a live source in a thread of its own; a slow reader gets its newest frame.

    Args:
        video: the source, open.
        reopen: opens it again.
        every: take the first and then every Nth frame.
        first_wait_s: seconds before it is opened again; doubled after each failure, up to 30.

    Attributes:
        n_dropped: frames that were replaced by newer ones before they were taken.
    """

    def __init__(
        self,
        video: LiveVideo,
        reopen: Callable[[], LiveVideo],
        *,
        every: int = 1,
        first_wait_s: float = 1.0,
    ) -> None:
        self.n_dropped = 0
        self._video, self._reopen, self._every = video, reopen, every
        self._first_wait_s = first_wait_s
        self._waiting: deque[_Taken | SourceLost | SourceRestored | BaseException] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def __iter__(self) -> Generator[Frame | SourceLost | SourceRestored, None, None]:
        """Yields frames, and when the source is lost and back, until the caller stops."""
        reader = threading.Thread(target=self._read, name="camera", daemon=True)
        reader.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: bool(self._waiting))
                    item = self._waiting.popleft()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, tuple):
                    number, seconds, image = item
                    try:
                        yield Frame(number, seconds, image())
                    except UnusableImage as error:
                        yield Frame(number, seconds, error)
                else:
                    yield item
        finally:
            self._stopped.set()
            reader.join(_END_S)  # it may wait for the network

    def _put(self, item: _Taken | SourceLost | SourceRestored | BaseException) -> None:
        with self._changed:
            is_frame = isinstance(item, tuple)
            if is_frame and self._waiting and isinstance(self._waiting[-1], tuple):
                self._waiting.pop()
                self.n_dropped += 1
            self._waiting.append(item)
            self._changed.notify()

    def _read(self) -> None:
        """The thread: frames until the source is lost, then attempts to open it again."""
        video, number = self._video, 0
        try:
            while True:
                try:
                    for image in video.frames:
                        number += 1
                        if self._stopped.is_set():
                            return
                        if (number - 1) % self._every == 0:
                            self._put((number, time.time(), image))
                    self._put(SourceLost("it has ended"))
                except StreamLost as lost:
                    self._put(SourceLost(lost.reason))
                finally:
                    video.close()
                opened = self._open_again()
                if opened is None:
                    return
                video = opened
        except BaseException as error:
            self._put(error)

    def _open_again(self) -> LiveVideo | None:
        """The source, open again; None if the caller has stopped before that."""
        since, wait_s = time.monotonic(), self._first_wait_s
        while not self._stopped.wait(wait_s):
            try:
                video = self._reopen()
            except StreamLost:
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            self._put(SourceRestored(time.monotonic() - since))
            return video
        return None
