"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a line every 30 s.

`progress_to` sends it to a function instead, or turns it off.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Protocol

from rich.filesize import decimal

_LOG = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
_REDRAW_EVERY_S = 0.1
_BAR_AND_ETA = len(" #### ") + len(" ETA 0:00:00")
"""Columns that the smallest bar and its ETA take, next to the text and the numbers."""

ProgressCallback = Callable[[str, int, int | None], object]
"""Called with the name of the work, the finished pieces, and their total (None if unknown)."""

_CALLBACK: ContextVar[ProgressCallback | None] = ContextVar("callback", default=None)


class Advance(Protocol):
    """Reports progress; cheap enough to call after every piece of work."""

    def __call__(self, done: int, detail: str = "") -> None:
        """Shows the progress if it is time for an update.

        Args:
            done: finished pieces, including those before the start.
            detail: a text to add, such as `loss 0.5`.
        """


@contextlib.contextmanager
def progress_to(callback: ProgressCallback | None) -> Iterator[None]:
    """Context in which a function gets the progress, instead of bars and log lines.

    It holds for this thread, or for this task of an event loop.

    Args:
        callback: called as `callback(what, done, total)` when work starts and after each piece of
            it, so it must be quick. `total` is None if unknown. An exception that it raises ends
            the work. With None there is no progress at all.
    """
    token = _CALLBACK.set(callback or (lambda what, done, total: None))
    try:
        yield
    finally:
        _CALLBACK.reset(token)


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
    callback = _CALLBACK.get()
    if callback is not None:
        callback(what, done, total)

        def call(done: int, detail: str = "") -> None:
            del detail
            callback(what, done, total)

        yield call
    elif _is_terminal():
        with _bar(what, total, done, in_bytes, unit) as advance:
            yield advance
    elif _is_notebook():
        with contextlib.closing(_NotebookBar(what, total, done, in_bytes, unit)) as bar:
            yield bar
    else:
        yield _Lines(what, total, done, in_bytes, unit)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Context that shows the name of work of unknown length on a terminal; elsewhere, nothing.

    It hides progress bars that other packages write to stderr.
    """
    callback = _CALLBACK.get()
    if callback is not None:
        callback(what, 0, None)
    if callback is not None or not _is_terminal():
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
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    # Not rich's own test, which FORCE_COLOR overrides
    return sys.stderr.isatty() and not is_dumb and not _is_silent()


def _is_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None and not _is_silent()


def _is_silent() -> bool:
    # All processes but rank 0 have a higher level
    return logging.getLogger("kdedge").level > logging.INFO


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

    _every_s = _LINE_EVERY_S

    def __init__(self, what: str, total: int | None, done: int, in_bytes: bool, unit: str) -> None:
        self._what, self._total, self._first, self._unit = what, total, done, unit
        self._number = readable_bytes if in_bytes else str
        self._start = self._said = time.monotonic()

    def __call__(self, done: int, detail: str = "") -> None:
        now = time.monotonic()
        if now - self._said < self._every_s:
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
        self._show(f"{self._what}: {', '.join(parts)}", done)

    def _show(self, text: str, done: int) -> None:
        del done
        _LOG.info("%s", text)


class _NotebookBar(_Lines):
    """A bar below a notebook's cell, with the same text; erased at the end."""

    _every_s = _REDRAW_EVERY_S

    def __init__(self, what: str, total: int | None, done: int, in_bytes: bool, unit: str) -> None:
        super().__init__(what, total, done, in_bytes, unit)
        display = importlib.import_module("IPython.display").display
        self._shown = display(self._drawn(what, done), raw=True, display_id=True)

    def close(self) -> None:
        """Erases the bar."""
        self._shown.update({"text/plain": "", "text/html": ""}, raw=True)

    def _show(self, text: str, done: int) -> None:
        self._shown.update(self._drawn(text, done), raw=True)

    def _drawn(self, text: str, done: int) -> dict[str, str]:
        known = "" if self._total is None else f' max="{self._total}" value="{done}"'
        return {
            "text/plain": text,
            "text/html": f"<progress{known}></progress> {html.escape(text)}",
        }


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
