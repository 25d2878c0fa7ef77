"""A folder that image files drop into: each is taken once, when nobody writes it any more."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdedge.data.sources import IMAGE_EXTENSIONS
from kdedge.runtime.formats import more_extensions
from kdedge.watching.frame import Back, Lost

_MANY = 100_000
"""So many files that are gone are remembered: they may be back with a network drive."""


@dataclass(frozen=True)
class Clock:
    """Time for a folder that is looked at again and again.

    Attributes:
        now: seconds, never going back.
        sleep: waits so many seconds.
        poll_s: seconds between two looks.
        settle_s: a file that has not changed for so long is complete.
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    poll_s: float = 0.5
    settle_s: float = 1.0


_Stamp = tuple[int, int, int]
"""Inode, size and time of change, which a file keeps when it is renamed."""


class DropFolder:
    """Finds new image files. Subfolders and hidden files are left out.

    A file is complete when it has not changed for a second, or when it was renamed from a name that
    is left out. One that is written anew is new. Files that are there at the start are left out.

    Args:
        path: the folder.
        existing: take the files that are there at the start, too.
        clock: tells and passes time.
    """

    def __init__(self, path: Path, *, existing: bool = False, clock: Clock | None = None) -> None:
        self._path, self._clock = path, clock or Clock()
        self._taken: set[_Stamp] = set()
        self._growing: dict[str, tuple[_Stamp, float]] = {}
        self._left_out: set[int] = set()
        for name, stamp in self._files():  # an error now, not in a loop that waits
            if not _is_wanted(name):
                self._left_out.add(stamp[0])
            elif not existing:
                self._taken.add(stamp)

    def __iter__(self) -> Iterator[Path | Lost | Back]:
        """Yields new files, the oldest first, and when the folder is gone and back; never ends."""
        gone_since: float | None = None
        while True:
            try:
                complete = self._look()
            except OSError as error:
                if gone_since is None:
                    gone_since = self._clock.now()
                    yield Lost((error.strerror or str(error)).lower())
            else:
                if gone_since is not None:
                    yield Back(self._clock.now() - gone_since)
                    gone_since = None
                yield from complete
            self._clock.sleep(self._clock.poll_s)

    def _look(self) -> list[Path]:
        """The files that have become complete since the last look."""
        now, growing, left_out = self._clock.now(), dict[str, tuple[_Stamp, float]](), set[int]()
        complete, found = list[tuple[int, str]](), set[_Stamp]()
        for name, stamp in self._files():
            found.add(stamp)
            if not _is_wanted(name):
                left_out.add(stamp[0])
                continue
            if stamp in self._taken or not stamp[1]:
                continue
            before, since = self._growing.get(name, (None, now))
            if before != stamp:
                since = now
            if stamp[0] in self._left_out or now - since >= self._clock.settle_s:
                complete.append((stamp[2], name))
                self._taken.add(stamp)
            else:
                growing[name] = stamp, since
        self._growing, self._left_out = growing, left_out
        if len(self._taken) > len(found) + _MANY:
            self._taken &= found
        return [self._path / name for _, name in sorted(complete)]

    def _files(self) -> Iterator[tuple[str, _Stamp]]:
        with os.scandir(self._path) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        status = entry.stat()
                        yield entry.name, (status.st_ino, status.st_size, status.st_mtime_ns)
                except OSError:  # deleted meanwhile
                    continue


def _is_wanted(name: str) -> bool:
    extension = Path(name).suffix[1:].lower()
    is_image = extension in IMAGE_EXTENSIONS or extension in more_extensions()
    return is_image and not name.startswith(".")
