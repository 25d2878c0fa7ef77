"""What to watch: a camera, a stream, a video, or a folder that files drop into."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from kdedge.data.sources import printable, read_file
from kdedge.errors import DataError, RecipeError, SetupError
from kdedge.inference.classify import ImageInput
from kdedge.runtime.live_video import LiveVideo, StreamLost, open_live, without_password
from kdedge.runtime.preprocess import UnusableImage, decode_image
from kdedge.runtime.video import frames_of_video, import_pyav
from kdedge.watching.drop_folder import DropFolder
from kdedge.watching.frame import Back, Frame, Lost
from kdedge.watching.newest import Newest

_CAMERA = re.compile(r"/dev/(video\d|v4l/)")

Kind = Literal["camera", "stream", "video", "folder"]


@dataclass(frozen=True)
class Source:
    """An open source.

    Attributes:
        name: for output; an address is without its password.
        kind: what it is.
        items: frames, and when the source is lost and back.
        n_dropped: number of frames so far that newer ones replaced, of a camera or stream.
    """

    name: str
    kind: Kind
    items: Generator[Frame | Lost | Back, None, None]
    n_dropped: Callable[[], int] = lambda: 0


def open_source(text: str, *, every: int = 1, existing: bool = False) -> Source:
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
    source = _opened(text, every=every, existing=existing)
    if existing and source.kind != "folder":
        raise RecipeError(
            f"existing is for a folder, and {source.name} is a {source.kind}.\n  Leave it out."
        )
    return source


def _opened(text: str, *, every: int, existing: bool) -> Source:
    if re.fullmatch(r"\d{1,3}", text):
        return _live(f"/dev/video{int(text)}", "camera", every)
    if "://" in text:
        return _live(text, "stream", every)
    path = Path(text)
    try:
        if _CAMERA.match(text) or path.is_char_device():
            return _live(text, "camera", every)
        if text and path.is_dir():
            folder = DropFolder(path, existing=existing)
            return Source(printable(text), "folder", _files(folder, every))
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
    import_pyav()  # fail before the model is loaded
    return Source(printable(text), "video", _video(path, every))


def _live(address: str, kind: Kind, every: int) -> Source:
    name = without_password(address)
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
        return Source(name, "video", _finite(video, every))
    newest = Newest(video, partial(open_live, address), every=every)
    return Source(name, kind, iter(newest), lambda: newest.n_dropped)


def _finite(video: LiveVideo, every: int) -> Generator[Frame, None, None]:
    """A video that a web server gives: all its frames; at damage, a last one without an image."""
    number = 0
    try:
        for number, image in enumerate(video.frames, 1):
            if (number - 1) % every == 0:
                yield Frame(number, time.time(), _read(image))
    except StreamLost as lost:
        yield Frame(number + 1, time.time(), UnusableImage(lost.reason))
    finally:
        video.close()


def _video(path: Path, every: int) -> Generator[Frame, None, None]:
    """A video's frames; at damage, a last one without an image."""
    number = 0
    try:
        for number, seconds, image in frames_of_video(path, every=every):
            yield Frame(number, time.time(), image, seconds=seconds)
    except UnusableImage as error:
        yield Frame(number + 1, time.time(), error)


def _files(folder: DropFolder, every: int) -> Generator[Frame | Lost | Back, None, None]:
    number = 0
    for item in folder:
        if not isinstance(item, Path):
            yield item
            continue
        number += 1
        if (number - 1) % every == 0:
            image = _read(lambda path=item: decode_image(read_file(path)))  # type: ignore[misc]
            yield Frame(number, time.time(), image, file=printable(item.name))


def _read(read: Callable[[], ImageInput]) -> ImageInput:
    try:
        return read()
    except UnusableImage as error:
        return error
