"""Locks a folder for one process at a time.

The filelock package cannot tell whether a lock is held without taking it, does not name the holder,
and on file systems without flock falls back to a file that stays locked after a kill.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from kdedge.errors import InUseError
from kdedge.files import explain_os_error, where_supported

_POLL_S = 0.02
_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False  # noqa: TRY300 - the lock is what was tried
    except OSError as error:
        return error.errno in _HELD
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(
    path: Path, *, remedy: str = "Wait for it or stop it.", wait_s: float = 0.0
) -> Iterator[None]:
    """Context in which this process holds the exclusive lock of a file, created where missing.

    The operating system frees the lock however this process ends. On a file system without locks, a
    warning says that nothing keeps another process out.

    Args:
        path: the lock file, which is not removed.
        remedy: advice for the message where another process holds the lock.
        wait_s: seconds to wait for another process before that is an error.

    Raises:
        InUseError: another process holds it.
        ResourceError: the folder may not be written.
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
        _take_lock(descriptor, path, remedy, give_up=time.monotonic() + wait_s)
        # A forked data worker that outlives this process would keep the lock for itself
        os.register_at_fork(after_in_child=let_go)
        yield
    finally:
        held.clear()
        os.close(descriptor)


def _take_lock(descriptor: int, path: Path, remedy: str, *, give_up: float) -> None:
    try:
        while True:
            try:
                take_lock(descriptor, path, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise
                time.sleep(_POLL_S)
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": socket.gethostname()}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    except OSError as error:
        if error.errno not in _HELD:
            raise explain_os_error(error, path) from error
        raise InUseError(
            f"{path.parent} is in use by another process: {_holder(descriptor)}.\n  {remedy}"
        ) from error


def take_lock(descriptor: int, path: Path, operation: int) -> None:
    """Locks an open file with a flock operation, if its file system has locks."""
    with where_supported(
        path, otherwise="without file locks, two commands may write to one folder at the same time"
    ):
        fcntl.flock(descriptor, operation)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "pid unknown"
