"""Progress of long work on stderr: a bar on a terminal, elsewhere a line every 30 s."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Protocol

from rich.filesize import decimal

_LOG = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
_REDRAW_EVERY_S = 0.1


class Advance(Protocol):
    """Reports progress; cheap enough to call after every piece of work."""

    def __call__(self, done: int, detail: str = "") -> None:
        """Shows the progress if it is time for an update.

        Args:
            done: finished pieces, including those before the start.
            detail: a text to add, such as `loss 0.5`.
        """


@contextlib.contextmanager
def progress(
    what: str, total: int | None, *, done: int = 0, in_bytes: bool = False
) -> Iterator[Advance]:
    """Context that shows the progress of work, and an estimate of the time left.

    Contexts may be nested; the inner bar then replaces the outer one. A bar is erased at the end.
    Lines go through the logger; work of less than 30 s writes none.

    Args:
        what: the work, such as `reading data.unlabeled`.
        total: number of pieces; None if unknown.
        done: pieces that were finished before the start; they do not count for the estimate.
        in_bytes: pieces are bytes, shown as in `1.5 GB`.
    """
    # All processes but rank 0 have a higher level
    is_silent = logging.getLogger("kdedge").level > logging.INFO
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    # Not rich's own test, which FORCE_COLOR overrides
    if sys.stderr.isatty() and not is_dumb and not is_silent:
        with _bar(what, total, done, in_bytes) as advance:
            yield advance
    else:
        yield _Lines(what, total, done, in_bytes)


@contextlib.contextmanager
def _bar(what: str, total: int | None, done: int, in_bytes: bool) -> Iterator[Advance]:
    """A bar that calls to `advance` redraw, without a thread."""
    # Imported here: without a terminal, no command pays 27 ms for it
    from rich.console import Console
    from rich.control import Control
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.segment import ControlType

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        redirect_stdout=False,
        transient=True,
    )
    task = bar.add_task(what, total=total, completed=done)
    drawn = -math.inf

    def advance(done: int, detail: str = "") -> None:
        nonlocal drawn
        bar.update(task, completed=done, description=f"{what}, {detail}" if detail else what)
        if time.monotonic() - drawn >= _REDRAW_EVERY_S:
            bar.refresh()
            drawn = time.monotonic()

    # Erases an outer bar
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
    with bar:
        yield advance


class _Lines:
    """Writes a line every 30 s through the logger."""

    def __init__(self, what: str, total: int | None, done: int, in_bytes: bool) -> None:
        self._what, self._total, self._first = what, total, done
        self._number = readable_bytes if in_bytes else str
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._said < _LINE_EVERY_S:
            return
        self._said = now
        more = f", {detail}" if detail else ""
        if self._total is None:
            _LOG.info("%s: %s%s", self._what, self._number(done), more)
            return
        if done > self._first:
            left = (self._total - done) * (now - self._start) / (done - self._first)
            more += f", {timedelta(seconds=round(left))} left"
        numbers = f"{self._number(done)} of {self._number(self._total)}"
        _LOG.info("%s: %s%s", self._what, numbers, more)


def readable_bytes(n_bytes: int) -> str:
    """Writes a number of bytes as in `1.5 GB` (1 GB = 1e9 bytes)."""
    return decimal(n_bytes)


def rough_duration(seconds: float) -> str:
    """Writes seconds roughly: 45 s, 12 min or 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
