"""Holds back lines that native code writes to stderr and that no setting turns off."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator

_one_at_a_time = threading.RLock()
"""A second thread would restore the first one's held lines as stderr."""


@contextlib.contextmanager
def lines_held(pattern: re.Pattern[bytes]) -> Iterator[list[str]]:
    """Context manager that takes native code's lines that contain a pattern from stderr.

    Lines are held in memory, as a device's disk may be read-only. The others are written when the
    context ends. If the system has no files in memory, nothing is taken.

    Yields:
        A list that has the taken lines when the context has ended.
    """
    taken: list[str] = []
    with _one_at_a_time, contextlib.ExitStack() as opened:
        try:
            kept = opened.enter_context(os.fdopen(os.dup(2), "wb", buffering=0))
            held = opened.enter_context(os.fdopen(os.memfd_create("stderr"), "w+b"))
        except (AttributeError, OSError):  # no such call here, or stderr is closed
            is_held = False
        else:
            is_held = True
            os.dup2(held.fileno(), 2)
        try:
            yield taken
        finally:
            if is_held:
                os.dup2(kept.fileno(), 2)
                held.seek(0)
                lines = list(held)
                taken += [line.decode(errors="replace") for line in lines if pattern.search(line)]
                with contextlib.suppress(OSError):  # the reader of stderr has closed it
                    kept.writelines(line for line in lines if not pattern.search(line))
