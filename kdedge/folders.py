"""Folders that are complete or absent, and locks of a folder for one process at a time.

The filelock package cannot tell whether a lock is held without taking it, does not name the holder,
and on file systems without flock falls back to a file that stays locked after a kill.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kdedge.errors import InUseError, RecipeError
from kdedge.files import explain_os_error, move_to_number, where_supported


@contextlib.contextmanager
def new_folder(
    folder: Path, *, is_numbered: bool = False
) -> Iterator[tuple[Path, Callable[[], Path]]]:
    """Context with a new folder to fill; it gets its final name when the context ends.

    Until then it is `.NAME.part-*` and locked. Folders of that name without a lock were left by
    killed processes and are deleted.

    Args:
        folder: the new folder or, with `is_numbered`, the folder to make it in. Missing parents are
            made.
        is_numbered: take the next free number in `folder`.

    Yields:
        The folder to write into, and a function that returns its final path afterwards.

    Raises:
        RecipeError: the folder exists.
        ResourceError: it cannot be written.
    """
    if not is_numbered and os.path.lexists(folder):
        raise RecipeError(
            f"{folder} exists, and nothing is overwritten.\n  Name another folder, or move it away."
        )
    above = folder if is_numbered else folder.parent
    part = above / f".{folder.name}.part-{secrets.token_hex(4)}"
    final: list[Path] = []
    is_made = not above.exists()
    try:
        above.mkdir(parents=True, exist_ok=True)
        _delete_left_behind(above, f".{folder.name}.part-")
        with _made(part):
            yield part, lambda: final[0]
            if is_numbered:
                final.append(move_to_number(part, folder))
            else:
                final.append(part.rename(folder))  # onto an empty folder, or a free name
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if is_made:
            with contextlib.suppress(OSError):  # it has the new folder
                above.rmdir()


@contextlib.contextmanager
def _made(part: Path) -> Iterator[None]:
    """Context of a new folder with a lock, if its file system has locks."""
    descriptor = _open_new(part)
    try:
        yield
    finally:
        os.close(descriptor)


def _open_new(part: Path) -> int:
    while True:
        part.mkdir()
        try:
            descriptor = os.open(part, os.O_RDONLY)
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if part.exists():  # else another process took it for one that was left behind
            return descriptor
        os.close(descriptor)


def _delete_left_behind(above: Path, start: str) -> None:
    for part in above.iterdir():
        if part.name.startswith(start):
            with contextlib.suppress(OSError):
                descriptor = os.open(part, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(part, ignore_errors=True)
                finally:
                    os.close(descriptor)


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
