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
from typing import Any, Protocol

from rich.filesize import decimal

_LOG = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
_REDRAW_EVERY_S = 0.1
_BAR_AND_ETA = len(" #### ") + len(" ETA 0:00:00")
"""Least columns beside the text and the numbers of a bar."""


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
    what: str, total: int | None, *, done: int = 0, in_bytes: bool = False, unit: str = ""
) -> Iterator[Advance]:
    """Context that shows the progress of work, its speed, and an estimate of the time left.

    Contexts may be nested; the inner bar then replaces the outer one. A bar is erased at the end.
    Lines go through the logger; work of less than 30 s writes none.

    Args:
        what: the work, such as `reading data.unlabeled`.
        total: number of pieces; None if unknown.
        done: pieces that were finished before the start; they do not count for the estimate.
        in_bytes: pieces are bytes, shown as in `1.5 GB`.
        unit: what the pieces are, to show their number a second; empty: no speed is shown.
    """
    if _is_terminal():
        with _bar(what, total, done, in_bytes, unit) as advance:
            yield advance
    else:
        yield _Lines(what, total, done, in_bytes, unit)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Context that names work of unknown length on a terminal; elsewhere nothing is shown.

    Another package's bar on stderr would not be seen meanwhile.
    """
    if not _is_terminal():
        yield
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text(f"{what} ..."), **_on_one_line()):
        yield


def rate(per_second: float, unit: str) -> str:
    """Writes a speed: `1,234 images/s`, below 10 with one digit."""
    return f"{per_second:,.{0 if per_second >= 10 else 1}f} {unit}/s"


def _is_terminal() -> bool:
    # All processes but rank 0 have a higher level
    is_silent = logging.getLogger("kdedge").level > logging.INFO
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    # Not rich's own test, which FORCE_COLOR overrides
    return sys.stderr.isatty() and not is_dumb and not is_silent


def _on_one_line() -> dict[str, Any]:
    """Options of a rich display on stderr that is redrawn without a thread and erased at its end.

    An outer display on the line is erased now.
    """
    # Imported here: without a terminal, no command pays 27 ms for it
    from rich.console import Console
    from rich.control import Control
    from rich.segment import ControlType

    console = Console(stderr=True)
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
    return {
        "console": console,
        "auto_refresh": False,
        "redirect_stdout": False,
        "transient": True,
    }


@contextlib.contextmanager
def _bar(what: str, total: int | None, done: int, in_bytes: bool, unit: str) -> Iterator[Advance]:
    """A bar that calls to `advance` redraw, without a thread."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    options = _on_one_line()
    numbers = DownloadColumn() if in_bytes else MofNCompleteColumn()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        numbers,
        TextColumn("ETA"),
        TimeRemainingColumn(),
        **options,
    )
    bar.add_task(what, total=total, completed=done)
    (task,) = bar.tasks
    width = options["console"].width - len(str(numbers.render(task))) - _BAR_AND_ETA
    first, began, drawn = done, time.monotonic(), -math.inf

    def advance(done: int, detail: str = "") -> None:
        nonlocal drawn
        took = max(time.monotonic() - began, 1e-9)
        speed = rate((done - first) / took, unit) if unit and done > first else ""
        text = ", ".join(part for part in (what, detail, speed) if part)
        shown = text if len(text) <= width else f"{text[: width - 1]}…"
        bar.update(task.id, completed=done, description=shown)
        if time.monotonic() - drawn >= _REDRAW_EVERY_S:
            bar.refresh()
            drawn = time.monotonic()

    with bar:
        yield advance


class _Lines:
    """Writes a line every 30 s through the logger."""

    def __init__(self, what: str, total: int | None, done: int, in_bytes: bool, unit: str) -> None:
        self._what, self._total, self._first, self._unit = what, total, done, unit
        self._number = readable_bytes if in_bytes else str
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._said < _LINE_EVERY_S:
            return
        self._said = now
        total, n_new = self._total, done - self._first
        parts = [
            self._number(done)
            if total is None
            else f"{self._number(done)} of {self._number(total)}"
        ]
        if detail:
            parts.append(detail)
        if n_new and self._unit:
            parts.append(rate(n_new / (now - self._start), self._unit))
        if n_new and total is not None:
            left = (total - done) * (now - self._start) / n_new
            parts.append(f"ETA {timedelta(seconds=round(left))}")
        _LOG.info("%s: %s", self._what, ", ".join(parts))


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
