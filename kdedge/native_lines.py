"""Suppresses log lines of native code and converters that no setting turns off."""

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

# A second thread would restore the first thread's memory file as stderr
_STDERR_LOCK = threading.RLock()


# Lines on stderr of packages that no setting turns off. ONNX Runtime warns of graphics cards that
# it does not know: github.com/microsoft/onnxruntime/issues/27092
LOG_LINES = re.compile(
    rb"device_discovery\.cc|^\[\w+\.(cpp|h):\d+\]|^(INFO|WARNING|ERROR): |^[IWE]\d{4} "
)

ANY_LINE = re.compile(rb"")


@contextlib.contextmanager
def filter_native_stderr(pattern: re.Pattern[bytes]) -> Iterator[None]:
    """Context that removes lines with a pattern from the stderr of native code.

    Native code writes to the file descriptor, or to `sys.stderr`, as pybind11 can. All lines are
    held in memory, since a device's disk may be read-only, and the other lines are written when the
    context ends. If the system has no files in memory, the file descriptor is not filtered.

    Args:
        pattern: matches the lines to remove.
    """
    with _STDERR_LOCK, contextlib.ExitStack() as opened:
        try:
            original = opened.enter_context(os.fdopen(os.dup(2), "wb", buffering=0))
            held = opened.enter_context(os.fdopen(os.memfd_create("stderr"), "w+b"))
        except (AttributeError, OSError):  # the system has no memfd_create, or stderr is closed
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
                os.dup2(original.fileno(), 2)
                held.seek(0)
                for line in held:
                    if not pattern.search(line):
                        with contextlib.suppress(OSError):  # the reader of stderr has closed it
                            original.write(line)
            for text in written.getvalue().splitlines(keepends=True):
                if sys.stderr is not None and not pattern.search(text.encode(errors="replace")):
                    sys.stderr.write(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which converters give no warnings and logs.

    They call their interfaces experimental, use deprecated ones, and look for GPU libraries. A
    handler that a converter adds to the root logger is removed, since it would print kdedge's own
    lines a second time.
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


@contextlib.contextmanager
def silenced(lines: re.Pattern[bytes] = LOG_LINES) -> Iterator[None]:
    """Context that suppresses a package's stdout, warnings, logs, and `lines` on stderr."""
    with filter_native_stderr(lines), contextlib.redirect_stdout(io.StringIO()), quiet():
        yield
