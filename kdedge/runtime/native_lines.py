"""Holds back lines that native code writes to stderr and that no setting turns off."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator

# A second thread would restore the first one's held lines as stderr
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def filter_native_stderr(pattern: re.Pattern[bytes]) -> Iterator[None]:
    """Context manager that takes native code's lines that contain a pattern from stderr.

    Native code writes to the file descriptor, or to `sys.stderr`, as pybind11 can. Lines are held
    in memory, as a device's disk may be read-only. The others are written when the context ends.
    If the system has no files in memory, nothing is taken from the file descriptor.

    Args:
        pattern: of the lines.
    """
    with _one_at_a_time, contextlib.ExitStack() as opened:
        try:
            kept = opened.enter_context(os.fdopen(os.dup(2), "wb", buffering=0))
            held = opened.enter_context(os.fdopen(os.memfd_create("stderr"), "w+b"))
        except (AttributeError, OSError):  # no such call here, or stderr is closed
            is_held = False
        else:
            is_held = True
            os.dup2(held.fileno(), 2)
        written = io.StringIO()
        try:
            with contextlib.redirect_stderr(written):
                yield
        finally:
            if is_held:
                os.dup2(kept.fileno(), 2)
                held.seek(0)
                for line in held:
                    if not pattern.search(line):
                        with contextlib.suppress(OSError):  # the reader of stderr has closed it
                            kept.write(line)
            for text in written.getvalue().splitlines(keepends=True):
                if sys.stderr is not None and not pattern.search(text.encode(errors="replace")):
                    sys.stderr.write(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context manager without warnings and logs, of which converters have many.

    They call their interfaces experimental, use deprecated ones, and look for GPU libraries. A
    handler that one gives the root logger would print kdedge's own lines a second time.
    """
    root = logging.root
    before, handlers, level = root.manager.disable, root.handlers[:], root.level
    logging.disable(max(before, logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        root.handlers[:] = handlers
        root.setLevel(level)
