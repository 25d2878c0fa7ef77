"""The newest frame of a camera or stream, which is opened again whenever it goes away."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator

from PIL import Image

from kdedge.runtime.live_video import LiveVideo, StreamLost
from kdedge.runtime.preprocess import UnusableImage
from kdedge.watching.frame import Back, Frame, Lost

_LONGEST_WAIT_S = 30.0
_END_S = 2.0

_Read = tuple[int, float, Callable[[], Image.Image]]


class Newest:
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
        self._waiting: deque[_Read | Lost | Back | BaseException] = deque()
        self._changed = threading.Condition()
        self._stopped = threading.Event()

    def __iter__(self) -> Generator[Frame | Lost | Back, None, None]:
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
                    number, at, image = item
                    try:
                        yield Frame(number, at, image())
                    except UnusableImage as error:
                        yield Frame(number, at, error)
                else:
                    yield item
        finally:
            self._stopped.set()
            reader.join(_END_S)  # it may wait for the network

    def _put(self, item: _Read | Lost | Back | BaseException) -> None:
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
                    self._put(Lost("it has ended"))
                except StreamLost as lost:
                    self._put(Lost(lost.reason))
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
            self._put(Back(time.monotonic() - since))
            return video
        return None
