"""Streams of images: JPEGs in a byte stream, frames of a camera."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from kdedge.errors import DataError, SetupError

MAX_BYTES = 1 << 29
"""A stream with 512 MiB without the end of an image is not a stream of photos."""

_START = b"\xff\xd8\xff"
# A multipart response's boundary may come after an empty line; no image begins with either.
_PREAMBLE = re.compile(rb"(\r?\n)*(--|HTTP/)")
_N_HEAD = 9  # enough to know these
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}  # TEM and the restart markers
# In a scan's data a marker is 0xff before anything but 0x00, a restart marker or more 0xff.
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


def frames_from_stream(read: Callable[[], bytes], *, max_bytes: int = MAX_BYTES) -> Iterator[bytes]:
    """Splits a stream of JPEGs into its images, each as soon as its last byte has arrived.

    Markers are followed as in ITU-T T.81, annex B, so a thumbnail inside an image is not mistaken
    for an image. Bytes between images, as in a camera's multipart response, are skipped, and so is
    the start of such a response: a boundary or HTTP headers. A stream that begins with neither of
    these nor with a JPEG is one image of any format.

    Args:
        read: returns the next available bytes; none at the end.
        max_bytes: maximum number of bytes without the end of an image.

    Yields:
        The bytes of one image; the last one may be truncated, which its decoder notices.

    Raises:
        DataError: `max_bytes` arrived without the end of an image.
    """
    stream = _Stream(read, max_bytes)
    stream.has(_N_HEAD)
    if not stream.buffer.startswith(_START) and not _PREAMBLE.match(stream.buffer):
        while stream.fill():
            pass
        if stream.buffer:
            yield bytes(stream.buffer)
        return
    while stream.skip_to_start():
        end = _end_of_jpeg(stream)
        yield bytes(stream.buffer[:end])
        del stream.buffer[:end]


class _Stream:
    """Buffer of bytes that were read but not yet used."""

    def __init__(self, read: Callable[[], bytes], max_bytes: int) -> None:
        self.buffer = bytearray()
        self._read, self._max_bytes = read, max_bytes

    def fill(self) -> bool:
        """Reads more bytes; false at the stream's end."""
        block = self._read()
        self.buffer += block
        if len(self.buffer) > self._max_bytes:
            raise DataError(
                f"The stream has {self._max_bytes >> 20} MiB without the end of an image.\n"
                "  Send one image, or JPEGs one after the other"
                " (ffmpeg ... -f image2pipe -c:v mjpeg -)."
            )
        return bool(block)

    def has(self, n_bytes: int) -> bool:
        """Reads until there are this many bytes; false if the stream ends before."""
        while len(self.buffer) < n_bytes:
            if not self.fill():
                return False
        return True

    def skip_to_start(self) -> bool:
        """Drops the bytes before the next JPEG; false if there is none."""
        while (start := self.buffer.find(_START)) < 0:
            del self.buffer[: max(0, len(self.buffer) - len(_START) + 1)]
            if not self.fill():
                return False
        del self.buffer[:start]
        return True


def _end_of_jpeg(stream: _Stream) -> int:
    """Position where the buffer's first JPEG ends, or breaks off."""
    buffer, at = stream.buffer, 2
    while stream.has(at + 2):
        marker = buffer[at + 1]
        if buffer[at] != 0xFF:  # damaged: the next image may still be complete
            return _find(stream, re.compile(re.escape(_START)), at)
        if marker == _END_OF_IMAGE:
            return at + 2
        if marker == _START_OF_IMAGE:  # this one was never finished
            return at
        if marker == 0xFF:
            at += 1
        elif marker in _WITHOUT_LENGTH:
            at += 2
        elif not stream.has(at + 4):
            break
        else:
            at += 2 + int.from_bytes(buffer[at + 2 : at + 4], "big")
            if marker == _START_OF_SCAN:
                at = _find(stream, _MARKER_IN_SCAN, at)
    return len(buffer)


def _find(stream: _Stream, pattern: re.Pattern[bytes], at: int) -> int:
    """Position of the next occurrence of a pattern of at most three bytes, or the stream's end."""
    while (found := pattern.search(stream.buffer, at)) is None:
        at = max(at, len(stream.buffer) - 2)
        if not stream.fill():
            return len(stream.buffer)
    return found.start()


def frames_from_camera(index: int) -> Iterator[Image.Image]:
    """Yields a camera's frames, always the newest, until the camera stops.

    Args:
        index: OpenCV's number of the camera; with V4L2, N is /dev/videoN.

    Yields:
        RGB images.

    Raises:
        SetupError: OpenCV is not installed, or the camera cannot be opened or stops.
    """
    cv2 = _import_opencv()
    camera = cv2.VideoCapture(index)
    try:
        if not camera.isOpened():
            raise SetupError(
                f"Camera {index} cannot be opened.\n"
                "  Check that it is connected, not in use, and readable for this user (ls -l"
                " /dev/video*)."
            )
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)  # otherwise a slow model sees old frames
        while True:
            is_there, frame = camera.read()
            if not is_there:
                raise SetupError(
                    f"Camera {index} gives no more frames.\n  Check that it is still connected."
                )
            yield Image.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    finally:
        camera.release()


def _import_opencv() -> Any:
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise SetupError(
            f"Reading a camera needs OpenCV, which cannot be imported ({error}).\n"
            "  Install it with: pip install opencv-python-headless"
        ) from error
    return cv2
