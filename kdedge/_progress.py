"""How far a long piece of work is: a bar on a terminal's stderr, elsewhere a line each 30 s."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Protocol

_LOG = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
_REDRAW_EVERY_S = 0.1


class Advance(Protocol):
    """Takes how far the work is; called after each piece, however often that is."""

    def __call__(self, done: int, detail: str = "") -> None:
        """Shows it, where it is time to.

        Args:
            done: pieces behind us, those before the start included.
            detail: what else is worth a place in the line, as in `loss 0.5`.
        """


@contextlib.contextmanager
def progress(
    what: str, total: int | None, *, done: int = 0, in_bytes: bool = False
) -> Iterator[Advance]:
    """Context in which a piece of work says how far it is and how long the rest takes.

    One may lie within another: while it lasts, its bar stands in the other's place. A bar leaves
    nothing behind; lines go through the logger, and work of less than 30 s has none.

    Args:
        what: is being done, as in `reading data.unlabeled`.
        total: pieces in all; None where that is not known.
        done: pieces behind us at the start; the time left is estimated from the others.
        in_bytes: a piece is a byte, and numbers of them are shown as in `1.5 GB`.
    """
    # Ranks above 0 are silent
    is_silent = logging.getLogger("kdedge").level > logging.INFO
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    # rich itself says yes wherever a variable such as FORCE_COLOR is set
    if sys.stderr.isatty() and not is_dumb and not is_silent:
        with _bar(what, total, done, in_bytes) as advance:
            yield advance
    else:
        yield _Lines(what, total, done, in_bytes)


@contextlib.contextmanager
def _bar(what: str, total: int | None, done: int, in_bytes: bool) -> Iterator[Advance]:
    """A bar that is redrawn by the work itself: no thread."""
    # Imported here: 27 ms that no command without a terminal pays
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

    # The line may hold the bar of the work around this one
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
    with bar:
        yield advance


class _Lines:
    """A line each 30 s through the logger."""

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
            more += f", {_duration(left)} left"
        numbers = f"{self._number(done)} of {self._number(self._total)}"
        _LOG.info("%s: %s%s", self._what, numbers, more)


def readable_bytes(n_bytes: int) -> str:
    """A number of bytes as in `1.5 GB`; a GB has 1e9."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def rough_duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
