"""Cameras and network streams, opened by PyAV, which includes FFmpeg's libraries."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from kdedge.runtime.video import import_pyav, upright

_TIMEOUT_S = 10.0
"""A stream that sends nothing for so long is taken as lost."""

_PASSWORD = re.compile(r"(?<=://)[^/\s?]*@")


class StreamLost(Exception):  # noqa: N818 - it is no error of the program
    """A camera or stream cannot be opened, or gives no more frames.

    Attributes:
        reason: why, as a sentence without a full stop.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class LiveVideo:
    """An open camera or stream.

    Attributes:
        has_end: it has a known length, as a video file that a web server gives.
        frames: functions that return a frame as an upright RGB image, which takes longer than
            decoding. If the source fails, it raises `StreamLost`.
        close: frees it.
    """

    has_end: bool
    frames: Iterator[Callable[[], Image.Image]]
    close: Callable[[], None]


def open_live(address: str) -> LiveVideo:
    """Opens a camera (/dev/video0) or the address of a stream (rtsp, http and others of FFmpeg's).

    Raises:
        StreamLost: it cannot be opened or has no video.
        SetupError: PyAV is not installed or broken.
    """
    av = import_pyav()
    kind = None if "://" in address else "v4l2"
    is_rtsp = address.lower().startswith("rtsp")
    options = {"rtsp_transport": "tcp"} if is_rtsp else {}  # UDP loses packets
    with contextlib.ExitStack() as stack:
        try:
            container = av.open(address, format=kind, options=options, timeout=_TIMEOUT_S)
        except (OSError, ValueError, av.FFmpegError) as error:
            raise StreamLost(_reason(error)) from error
        stack.callback(container.close)
        if not container.streams.video:
            raise StreamLost("it has no video")
        stack.pop_all()
    has_end = bool(container.duration and container.duration > 0)
    return LiveVideo(has_end, _frames(container, av), container.close)


def _frames(container: Any, av: Any) -> Iterator[Callable[[], Image.Image]]:
    """Decodes frames; a damaged packet, as after a loss on the network, is skipped."""
    try:
        for packet in container.demux(container.streams.video[0]):
            try:
                decoded = packet.decode()
            except av.InvalidDataError:
                continue
            yield from (partial(upright, frame) for frame in decoded)
    except (OSError, av.FFmpegError) as error:
        raise StreamLost(_reason(error)) from error


def without_password(address: str) -> str:
    """An address without the user and password in it, for output."""
    return _PASSWORD.sub("", address)


def _reason(error: BaseException) -> str:
    """An error's text without the address, which may have a password."""
    text = getattr(error, "strerror", None) or without_password(str(error))
    return str(text).lower()
