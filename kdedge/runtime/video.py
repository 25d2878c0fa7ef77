"""Frames of videos, read by PyAV, which includes FFmpeg's libraries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from kdedge.packages import PACKAGES
from kdedge.runtime.preprocess import MAX_PIXELS, ImageError

PYAV = PACKAGES["av"]

_EXTENSIONS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)

TIMEOUT_S = 10.0
"""A stream that sends nothing for this time counts as lost."""

_PASSWORD = re.compile(r"(?<=://)[^/\s?]*@|((?:pass|passwd|password|pwd)=)[^&\s]+", re.IGNORECASE)


class VideoFrame(NamedTuple):
    """One frame of a video.

    Attributes:
        number: number of the frame in the video, from 1.
        seconds: time from the video's start; None if the file has no times.
        image: RGB, upright.
    """

    number: int
    seconds: float | None
    image: Image.Image


def is_video(path: Path) -> bool:
    """Whether a file is a video, judged by its extension."""
    return path.suffix.lower() in _EXTENSIONS


def frames_of_video(path: Path | str, *, every: int) -> Iterator[VideoFrame]:
    """Decodes a video.

    Args:
        path: the file, or its address.
        every: yield the first frame, then each `every`-th frame.

    Raises:
        ImageError: the file cannot be read or has no video, or its next frame is damaged.
        SetupError: PyAV is not installed or broken.
    """
    av = PYAV.load()
    try:
        with av.open(str(path), timeout=TIMEOUT_S) as container:
            if not container.streams.video:
                raise ImageError("the file has no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            # Not 0 in every file; sound may begin before the picture
            began = (container.start_time or 0) / av.time_base
            for number, frame in enumerate(container.decode(stream), 1):
                if (number - 1) % every == 0:
                    seconds = None if frame.time is None else frame.time - began
                    yield VideoFrame(number, seconds, upright(frame))
    except av.FFmpegError as error:
        raise ImageError(f"the video cannot be decoded: {reason_of(error)}") from error


def upright(frame: Any) -> Image.Image:
    """Returns a decoded frame as RGB, rotated by the angle in the video's metadata.

    Raises:
        ImageError: the frame has more than MAX_PIXELS pixels.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise ImageError(f"its frames are too large: {frame.width} x {frame.height} pixels")
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def without_password(address: str) -> str:
    """An address without its user and password, for output."""
    return _PASSWORD.sub(r"\1", address)


def reason_of(error: BaseException) -> str:
    """An error's text without passwords of addresses."""
    text = getattr(error, "strerror", None) or without_password(str(error))
    return str(text).lower()
