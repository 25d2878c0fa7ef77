"""Shares pieces of work among processes, by locks on the bytes of one file.

The operating system holds the locks, so the pieces of a killed process become free.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from kdedge.files import explain_os_error


class Claims:
    """Context manager in which this process can claim pieces by their number.

    POSIX locks belong to the whole process and end when it closes the file the first time. So use
    one context manager per file and process at a time.

    Args:
        path: the file; created if missing, and stays empty.

    Raises:
        ResourceError: the file is not writable, or its file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Claims:
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise explain_os_error(error, self._path) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def take(self, number: int) -> bool:
        """Claims a piece; False where another process has it."""
        return self._lock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def wait_for(self, number: int) -> None:
        """Claims a piece once no other process has it."""
        self._lock(number, fcntl.LOCK_EX)

    def give_back(self, number: int) -> None:
        """Releases a piece."""
        self._lock(number, fcntl.LOCK_UN)

    def _lock(self, number: int, how: int) -> bool:
        try:
            fcntl.lockf(self._file, how, 1, number)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise explain_os_error(error, self._path) from error
            return False
        return True
