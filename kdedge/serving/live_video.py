"""Frames of cameras and streams, which may fail and come back, read by PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from kdedge.runtime.video import PYAV, TIMEOUT_S, reason_of, upright


@dataclass(frozen=True)
class LiveVideo:
    """An open camera or stream.

    Attributes:
        has_end: whether it has a known length, such as a video file from a web server.
        frames: yields a function for each frame that converts it to an upright RGB image, which
            takes longer than decoding. Raises `ConnectionError` if the source fails.
        close: closes the source.
    """

    has_end: bool
    frames: Iterator[Callable[[], Image.Image]]
    close: Callable[[], None]


def open_live(address: str) -> LiveVideo:
    """Opens a camera (/dev/video0) or the address of a stream (rtsp, http, others of FFmpeg).

    Raises:
        ConnectionError: the source cannot be opened or has no video; the text is the reason.
        SetupError: PyAV is not installed or broken.
    """
    av = PYAV.load()
    kind = None if "://" in address else "v4l2"
    is_rtsp = address.lower().startswith("rtsp")
    options = {"rtsp_transport": "tcp"} if is_rtsp else {}  # UDP loses packets
    try:
        container = av.open(address, format=kind, options=options, timeout=TIMEOUT_S)
    except (OSError, ValueError, av.FFmpegError) as error:
        raise ConnectionError(reason_of(error)) from error
    if not container.streams.video:
        container.close()
        raise ConnectionError("it has no video")
    has_end = bool(container.duration and container.duration > 0)
    return LiveVideo(has_end, _frames(container, av), container.close)


def _frames(container: Any, av: Any) -> Iterator[Callable[[], Image.Image]]:
    """Decodes frames; skips damaged packets, such as after a loss on the network."""
    try:
        for packet in container.demux(container.streams.video[0]):
            try:
                decoded = packet.decode()
            except av.InvalidDataError:
                continue
            yield from (partial(upright, frame) for frame in decoded)
    except (OSError, av.FFmpegError) as error:
        raise ConnectionError(reason_of(error)) from error
