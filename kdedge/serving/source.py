"""Sources of frames to watch: a camera, a stream, a video, or a folder that receives files."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kdedge.data.sources import IMAGE_EXTENSIONS, read_file
from kdedge.errors import DataError, RecipeError, SetupError, os_reason
from kdedge.files import printable
from kdedge.inference.classify import ImageInput
from kdedge.messages import option
from kdedge.runtime.preprocess import ImageError, more_extensions
from kdedge.runtime.video import PYAV, frames_of_video, without_password
from kdedge.serving.live_video import LiveVideo, open_live

# Interval of checks of a folder; a file that is the same in two checks is complete
_LOOK_EVERY_S = 1.0

_LONGEST_WAIT_S = 30.0
_END_S = 2.0

_CAMERA = re.compile(r"/dev/(video\d|v4l/)")

# Files with their time of change, nanoseconds, and size
ImageStamps = dict[Path, tuple[int, int]]

# An object for JSON lines
Event = dict[str, Any]

FrameSourceKind = Literal["camera", "stream", "video", "folder"]


def event(name: str, **values: Any) -> Event:
    """An event with the current time."""
    return {"event": name, "time": clock_text(time.time()), **values}


def clock_text(seconds: float) -> str:
    """A time in UTC, as ISO 8601 with milliseconds."""
    utc = datetime.fromtimestamp(seconds, timezone.utc)
    return utc.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        number: number from 1, counting all frames of the source, including dropped ones.
        image: the image, a function that makes it, or the error if there is none.
        seconds: position in a video; None for other sources.
        file: file name in a folder; None for other sources.
        time: time at which it was read, seconds since 1970.
    """

    number: int
    image: ImageInput
    seconds: float | None = None
    file: str | None = None
    time: float = field(default_factory=time.time)

    def when(self) -> Event:
        """Time and number of the frame, and its position in a video or name in a folder."""
        values: Event = {"time": clock_text(self.time), "frame": self.number}
        if self.seconds is not None:
            values["seconds"] = round(self.seconds, 3)
        if self.file is not None:
            values["file"] = self.file
        return values


@dataclass(frozen=True)
class FrameSource:
    """An open source.

    Attributes:
        name: name for output; an address is without its password.
        kind: kind of the source.
        items: frames, and the events `lost` and `back` of the source.
        close: ends the items and closes the camera or stream.
        n_dropped: returns the number of frames that newer ones have replaced so far, of a camera or
            stream.
    """

    name: str
    kind: FrameSourceKind
    items: Iterator[Frame | Event]
    close: Callable[[], None]
    n_dropped: Callable[[], int] = lambda: 0


def open_frames(text: str, *, every: int, existing: bool) -> FrameSource:
    """Opens the source that a text names.

    Args:
        text: a camera's number or /dev/video0, an address (rtsp, http), a video, or a folder.
        every: take the first and then every Nth frame or file.
        existing: whether to take files that are in a folder already, too.

    Raises:
        DataError: there is no such file or folder, or it cannot be read.
        RecipeError: `existing` is set, and the source is no folder.
        SetupError: PyAV is not installed; or the camera or address cannot be opened.
    """
    if re.fullmatch(r"\d{1,3}", text):
        text = f"/dev/video{int(text)}"
    text = str(Path(text).expanduser()) if text.startswith("~/") else text
    kind = _kind_of(text)
    is_live = kind in ("camera", "stream")
    name = without_password(text) if is_live else printable(text)
    if existing and kind != "folder":
        what = option("--existing")
        raise RecipeError(f"{what} is for a folder, and {name} is a {kind}.\n  Leave it out.")
    if not is_live:  # wherever this process goes
        text = str(Path(text).absolute())
    if kind == "folder":
        seen = {} if existing else image_stamps(Path(text))  # before new files can arrive
        files = new_files(Path(text), seen, every=every)
        return FrameSource(name, kind, files, files.close)
    PYAV.load()  # fail before the model is loaded
    if is_live:
        try:
            video = open_live(text)
        except ConnectionError as lost:
            remedy = "Check the address, its user and password, and that the camera is on."
            if kind == "camera":
                remedy = (
                    "Check that it is connected, not in use, and readable for this user (ls -l"
                    " /dev/video*)."
                )
            raise SetupError(f"{name} cannot be opened: {lost}.\n  {remedy}") from lost
        if not video.has_end:
            newest = LatestFrameReader(video, partial(open_live, text), every=every)
            return FrameSource(name, kind, newest, newest.close, lambda: newest.n_dropped)
        video.close()
    frames = _video(text, every)
    return FrameSource(name, "video", frames, frames.close)


def _kind_of(text: str) -> FrameSourceKind:
    """The kind of the source that a text names; nothing is opened."""
    if "://" in text:
        return "stream"
    path = Path(text)
    try:
        if _CAMERA.match(text) or path.is_char_device():
            return "camera"
        if text and path.is_dir():
            with os.scandir(path):  # raises if the folder may not be listed
                return "folder"
        is_file = path.is_file()
    except OSError as error:
        raise DataError(
            f"{printable(text)} cannot be read: {os_reason(error)}.\n"
            "  Name a file or folder that you may read."
        ) from error
    if not text or not is_file:
        problem = f"{printable(text)} does not exist" if text else "SOURCE is empty text"
        raise DataError(
            f"{problem}.\n"
            "  Name a camera (0 or /dev/video0), an address (rtsp://...), a video, or a folder."
        )
    return "video"


def _video(file: str, every: int) -> Generator[Frame, None, None]:
    """The frames of a video file or address; a damaged frame becomes a last one with an error."""
    number = 0
    try:
        for number, seconds, image in frames_of_video(file, every=every):
            yield Frame(number, image, seconds)
    except ImageError as error:
        yield Frame(number + 1, error)


def new_files(
    folder: Path, seen: ImageStamps, *, every: int, every_s: float = _LOOK_EVERY_S
) -> Generator[Frame | Event, None, None]:
    """Yields new image files, numbered, and the events `lost` and `back` of the folder; never ends.

    A file is taken once, when two checks find it unchanged; a file that is written again is new.
    Subfolders and hidden files are left out.

    Args:
        folder: the folder.
        seen: the files that are not new.
        every: take the first and then every Nth file.
        every_s: seconds between two checks.
    """
    before: ImageStamps = {}
    number = 0
    lost_at: float | None = None
    while True:
        try:
            present = image_stamps(folder)
        except OSError as error:
            if lost_at is None:
                lost_at = time.monotonic()
                yield event("lost", reason=os_reason(error))
            time.sleep(every_s)
            continue
        if lost_at is not None:
            yield event("back", after_s=round(time.monotonic() - lost_at, 1))
            lost_at = None
        if present:  # an empty folder may be a share that is not mounted now
            seen = {path: stamp for path, stamp in seen.items() if path in present}
        for path, stamp in present.items():
            if stamp == before.get(path) and stamp != seen.get(path):
                seen[path] = stamp
                number += 1
                if (number - 1) % every == 0:
                    yield Frame(number, partial(read_file, path), file=printable(path.name))
        before = present
        time.sleep(every_s)


def image_stamps(folder: Path) -> ImageStamps:
    """Time of change and size of each image file in a folder, the oldest first.

    Raises:
        OSError: the folder cannot be listed.
    """
    stamps: ImageStamps = {}
    for path in folder.iterdir():  # glob would hide that the folder may not be read
        extension = path.suffix[1:].lower()
        is_image = extension in IMAGE_EXTENSIONS or extension in more_extensions()
        if is_image and not path.name.startswith("."):
            try:
                status = path.stat()
            except OSError:  # deleted meanwhile
                continue
            if status.st_size and stat.S_ISREG(status.st_mode):
                stamps[path] = (status.st_mtime_ns, status.st_size)
    return dict(sorted(stamps.items(), key=lambda item: item[1]))


class LatestFrameReader:
    """Reads a live source in its own thread; a slow consumer gets only the newest frame.

    Iteration yields frames, and the events `lost` and `back`, until it is closed.

    Args:
        video: the open source.
        reopen: opens the source again.
        every: take the first and then every Nth frame.
        first_wait_s: seconds before the source is opened again; doubled after each failure, up to
            30.

    Attributes:
        n_dropped: number of frames that newer ones replaced before they were taken.
    """

    def __init__(
        self,
        video: LiveVideo,
        reopen: Callable[[], LiveVideo],
        *,
        every: int,
        first_wait_s: float = 1.0,
    ) -> None:
        self.n_dropped = 0
        self._video = video
        self._reopen = reopen
        self._every = every
        self._first_wait_s = first_wait_s
        self._waiting: deque[Frame | Event | BaseException] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[Frame | Event]:
        return self

    def __next__(self) -> Frame | Event:
        if self._thread is None:
            self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting))
            item = self._waiting.popleft()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Ends the thread and closes the source."""
        self._stopped.set()
        if self._thread is None:
            self._video.close()
        else:
            self._thread.join(_END_S)  # it may wait for the network

    def _put(self, item: Frame | Event | BaseException) -> None:
        """Queues a frame or event; a frame replaces a frame that was not taken yet."""
        with self._changed:
            last = self._waiting[-1] if self._waiting else None
            if isinstance(item, Frame) and isinstance(last, Frame):
                self._waiting.pop()
                self.n_dropped += 1
            self._waiting.append(item)
            self._changed.notify()

    def _read(self) -> None:
        """The thread: reads frames until the source is lost, then tries to open it again."""
        video = self._video
        number = 0
        try:
            while True:
                try:
                    for image in video.frames:
                        number += 1
                        if self._stopped.is_set():
                            return
                        if (number - 1) % self._every == 0:
                            self._put(Frame(number, image))
                    reason = "it has ended"
                except ConnectionError as lost:
                    reason = str(lost)
                finally:
                    video.close()
                self._put(event("lost", reason=reason))
                opened = self._open_again()
                if opened is None:
                    return
                video = opened
        except BaseException as error:
            self._put(error)

    def _open_again(self) -> LiveVideo | None:
        """Opens the source again; returns None if the reader is closed meanwhile."""
        lost_at = time.monotonic()
        wait_s = self._first_wait_s
        while not self._stopped.wait(wait_s):
            try:
                video = self._reopen()
            except ConnectionError:
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                continue
            self._put(event("back", after_s=round(time.monotonic() - lost_at, 1)))
            return video
        return None
