"""What one process holds of a run folder while it works in it: the lock and the log."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from kdedge._files import explain_os_error
from kdedge.errors import ResourceError


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False  # noqa: TRY300 - the lock is what was tried
    except OSError:
        return True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Context in which this process alone holds the lock of a file, which is made if need be.

    The operating system holds the lock: whatever ends this process frees it.

    Raises:
        ResourceError: another process holds it, or the folder may not be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise explain_os_error(error, path) from error
    held = [descriptor]

    def let_go() -> None:
        while held:
            os.close(held.pop())

    try:
        _take_lock(descriptor, path)
        # A forked data worker that outlives this process would keep the lock for itself
        os.register_at_fork(after_in_child=let_go)
        yield
    finally:
        held.clear()
        os.close(descriptor)


def _take_lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            raise explain_os_error(error, path) from error
        raise ResourceError(
            f"{path.parent} is in use by another process: {_holder(descriptor)}.\n"
            "  Wait for it or stop it; a new run gets a folder of its own."
        ) from error


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "pid unknown"


@contextlib.contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Context in which kdedge's messages, and the traceback of what ends it, go to a file too."""
    logger = logging.getLogger("kdedge")
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise explain_os_error(error, path) from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    level = logger.level
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    logger.addHandler(handler)
    try:
        yield
    except BaseException as error:
        # To the file alone: who calls decides what is shown
        record = logger.makeRecord(
            logger.name, logging.ERROR, __file__, 0, "%s", (type(error).__name__,),
            (type(error), error, error.__traceback__),
        )  # fmt: skip
        handler.handle(record)
        vars(error)["run_log"] = path  # where who reports the error finds its traceback
        raise
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, without tracebacks of its own on stderr."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()
