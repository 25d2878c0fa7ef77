"""Progress of long work: a bar on a terminal or in a notebook, elsewhere a line every 30 s.

`progress_to` sends it to a function instead, or turns it off.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import IO, Any, Protocol

_LOG = logging.getLogger(__name__)
_LINE_EVERY_S = 30.0
_REDRAW_EVERY_S = 0.1

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
        unit: noun for the pieces, such as `images`, to show a speed; if empty, none is shown.
    """
    callback = _CALLBACK.get()
    if callback is not None:
        callback(what, done, total)

        def call(done: int, detail: str = "") -> None:
            del detail
            callback(what, done, total)

        yield call
        return
    n_before = done
    as_text = readable_bytes if in_bytes else str
    of_total = "" if total is None else f" of {as_text(total)}"
    with _display(what, total, done) as (show, every_s):
        start = shown = time.monotonic()

        def advance(done: int, detail: str = "") -> None:
            nonlocal shown
            now = time.monotonic()
            n_new = done - n_before
            if now - shown < every_s:
                return
            shown = now
            parts = [f"{what}: {as_text(done)}{of_total}"]
            if n_new and total is not None:
                left = (total - done) * (now - start) / n_new
                parts.append(f"ETA {timedelta(seconds=round(left))}")
            if n_new and unit:
                parts.append(rate(n_new / (now - start), unit))
            if detail:
                parts.append(detail)
            show(", ".join(parts), done)

        yield advance


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Context that shows the name of work of unknown length, on a terminal only.

    It hides progress bars that other packages write to stderr.
    """
    callback = _CALLBACK.get()
    if callback is not None:
        callback(what, 0, None)
    if callback is not None or _is_silent() or not is_terminal(sys.stderr):
        yield
        return
    from rich.live import Live
    from rich.text import Text

    with Live(Text(f"{what} ..."), **_on_one_line()):
        yield


def rate(per_second: float, unit: str) -> str:
    """Formats a speed: `1,234 images/s`; below 10, with one decimal."""
    speed = f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:,.1f}"
    return f"{speed} {unit}/s"


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal that can color and rewrite its lines."""
    is_dumb = os.environ.get("TERM", "").lower() in {"dumb", "unknown"}
    # Not rich's own test, which FORCE_COLOR overrides
    return stream is not None and stream.isatty() and not is_dumb


def _is_notebook() -> bool:
    """Whether a Jupyter kernel runs this process."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None and not _is_silent()


def _is_silent() -> bool:
    """Whether this process logs no progress, like all ranks but 0."""
    # `distributed.joined` raises the level in all processes but rank 0
    return logging.getLogger("kdedge").level > logging.INFO


def _on_one_line() -> dict[str, Any]:
    """Erases the terminal's line and returns the options of a rich display on it.

    The display is redrawn without a thread and erased at its end.
    """
    # Imported here to save 27 ms where stderr is no terminal
    from rich.console import Console
    from rich.control import Control
    from rich.segment import ControlType

    console = Console(stderr=True)
    console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
    return {"console": console, "auto_refresh": False, "redirect_stdout": False, "transient": True}


@contextlib.contextmanager
def _display(
    what: str, total: int | None, done: int
) -> Iterator[tuple[Callable[[str, int], object], float]]:
    """Context with a function that shows a text and the finished pieces, and its interval in s."""
    if is_terminal(sys.stderr) and not _is_silent():
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Column, Table

        def drawn(text: str, done: int) -> Table:
            line = Table.grid(Column(ratio=1), Column(no_wrap=True), padding=(0, 1), expand=True)
            line.add_row(ProgressBar(total, done), text)
            return line

        with Live(drawn(what, done), **_on_one_line()) as live:
            yield lambda text, done: live.update(drawn(text, done), refresh=True), _REDRAW_EVERY_S
    elif _is_notebook():

        def data(text: str, done: int) -> dict[str, str]:
            state = "" if total is None else f' max="{total}" value="{done}"'
            bar = f"<progress{state}></progress> {html.escape(text)}"
            return {"text/plain": text, "text/html": bar}

        display = importlib.import_module("IPython.display").display
        shown = display(data(what, done), raw=True, display_id=True)
        try:
            yield lambda text, done: shown.update(data(text, done), raw=True), _REDRAW_EVERY_S
        finally:
            shown.update({"text/plain": "", "text/html": ""}, raw=True)
    else:
        yield lambda text, done: _LOG.info("%s", text), _LINE_EVERY_S


def readable_bytes(n_bytes: int) -> str:
    """Formats a number of bytes as in `1.5 GB` (1 GB = 1e9 bytes)."""
    from rich.filesize import decimal

    return decimal(n_bytes)


def rough_duration(seconds: float) -> str:
    """Formats a duration roughly: 45 s, 12 min or 1.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
