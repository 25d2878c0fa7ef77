"""Frames of a video file, decoded by PyAV, which includes FFmpeg's libraries."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from kdedge.errors import MissingPackage, SetupError
from kdedge.runtime.preprocess import MAX_PIXELS, UnusableImage

_EXTENSIONS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv"}
)


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
    """Whether a file is a video by its name."""
    return path.suffix.lower() in _EXTENSIONS


def import_pyav() -> Any:
    """Imports PyAV.

    Raises:
        MissingPackage: it is not installed.
        SetupError: it is broken.
    """
    try:
        return importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise MissingPackage("av", extra="video", purpose="Reading a video or a camera") from error
    except ImportError as error:
        raise SetupError(
            f"PyAV, which reads videos, cannot be imported: {error}.\n"
            "  Reinstall it with: pip install --force-reinstall av"
        ) from error


def frames_of_video(path: Path, *, every: int = 1) -> Iterator[VideoFrame]:
    """Decodes a video.

    Args:
        path: the file.
        every: yield the first frame, and then every `every`-th.

    Raises:
        UnusableImage: the file cannot be read, has no video, or is damaged from here on.
        SetupError: PyAV is not installed or broken.
    """
    av = import_pyav()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UnusableImage("the file has no video")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for number, frame in enumerate(container.decode(stream), 1):
                if (number - 1) % every == 0:
                    yield VideoFrame(number, frame.time, upright(frame))
    except av.FFmpegError as error:
        reason = (error.strerror or str(error)).lower()
        raise UnusableImage(f"the video cannot be decoded: {reason}") from error


def upright(frame: Any) -> Image.Image:
    """Returns a decoded frame as RGB, rotated as the video's metadata says.

    Raises:
        UnusableImage: it is larger than any photo.
    """
    if frame.width * frame.height > MAX_PIXELS:
        raise UnusableImage(f"its frames are too large: {frame.width} x {frame.height} pixels")
    image: Image.Image = frame.to_image()
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image
