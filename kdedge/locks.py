"""Locks of files and folders, by flock: they end with their process.

`lock_itself` locks an existing file or folder while a command changes it, and `lock_file` the lock
file of something that commands share: a run, a suite, a store, a cache, a download.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from kdedge.errors import InUseError, explain_os_error, explaining_writes

log = logging.getLogger(__name__)

# Error codes of network and FAT file systems for calls that they do not support
_UNSUPPORTED = frozenset({
    errno.EPERM, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY,
    errno.ENOLCK,
    errno.EBADF,  # NFS: an exclusive lock of a file that is open for reading only
})  # fmt: skip

_WARNED: set[str] = set()


@contextlib.contextmanager
def where_supported(path: Path, *, otherwise: str) -> Iterator[None]:
    """Context of a call that some file systems do not support: there, a warning replaces the error.

    Args:
        path: a file or folder of the file system.
        otherwise: the consequence for the user, which ends the warning.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if otherwise not in _WARNED:
            _WARNED.add(otherwise)
            log.warning(f"The file system of {path.absolute()} is limited: {otherwise}.")


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


def delete_unlocked(folder: Path) -> bool:
    """Deletes a folder and its files, unless a process holds its lock; then, returns False.

    Raises:
        OSError: the folder cannot be opened, or its file system has no locks.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextlib.contextmanager
def lock_itself(path: Path) -> Iterator[None]:
    """Context in which this process alone writes to an existing file or folder.

    Raises:
        InUseError: another process holds its lock.
        ResourceError: the file or folder cannot be opened.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        if not _flock(descriptor, path):
            raise InUseError(
                f"{path} is in use by another process.\n  Wait for it, or name another one."
            )
        yield


@contextlib.contextmanager
def lock_file(
    path: Path, *, remedy: str = "Wait for it or stop it.", wait_s: float = 0.0
) -> Iterator[None]:
    """Context in which this process holds the exclusive lock of a file; a missing file is created.

    The operating system frees the lock however this process ends. If the file system has no locks,
    a warning says that nothing keeps another process out.

    Args:
        path: the lock file, which is not removed.
        remedy: advice that ends the message if another process holds the lock.
        wait_s: seconds to wait for another process to free the lock.

    Raises:
        InUseError: another process holds it.
        ResourceError: the folder may not be written.
    """
    with _opened(path, os.O_RDWR | os.O_CREAT) as descriptor:
        give_up = time.monotonic() + max(wait_s, 0.1)  # `is_locked` holds it for a moment
        while not _flock(descriptor, path):
            if time.monotonic() >= give_up:
                raise InUseError(
                    f"{path.parent} is in use by another process: {_holder(descriptor)}."
                    f"\n  {remedy}"
                )
            time.sleep(_POLL_S)
        with contextlib.suppress(OSError):  # on a full disk, the message above lacks the holder
            os.ftruncate(descriptor, 0)
            holder = {"pid": os.getpid(), "host": socket.gethostname()}
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
        yield


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """Context with the descriptor of a file or folder, opened to be locked."""
    with explaining_writes(path):
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    _LOCK_DESCRIPTORS.add(descriptor)
    try:
        yield descriptor
    finally:
        _LOCK_DESCRIPTORS.discard(descriptor)
        os.close(descriptor)


_LOCK_DESCRIPTORS: set[int] = set()  # descriptors with locks


def _close_in_child() -> None:
    """Closes a forked process's copies of the descriptors, which would otherwise hold the locks.

    The import of openvino forks a process that may live for seconds.
    """
    while _LOCK_DESCRIPTORS:
        os.close(_LOCK_DESCRIPTORS.pop())


os.register_at_fork(after_in_child=_close_in_child)


def _flock(descriptor: int, path: Path) -> bool:
    """Locks an open file or folder; returns False if another process holds the lock.

    Where the file system has no locks, it warns and returns True.
    """
    try:
        with where_supported(
            path,
            otherwise="without file locks, two commands may write to one folder at the same time",
        ):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            raise explain_os_error(error, path) from error
        return False
    return True


def _holder(descriptor: int) -> str:
    """Describes the process that a lock file names."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"pid {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "pid unknown"
