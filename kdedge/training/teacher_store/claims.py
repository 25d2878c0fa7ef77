"""Pieces of work that processes share out among themselves by locks on the bytes of one file.

The operating system holds the locks: whatever ends a process frees its pieces.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from kdedge.files import explain_os_error


class Claims:
    """Context in which this process can claim pieces by their number.

    POSIX locks, which belong to a process as a whole and end with the first close of the file in
    it: one such context a file and process at a time.

    Args:
        path: the file, which is made if need be and stays empty.

    Raises:
        ResourceError: the file may not be written, or its file system has no locks.
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
        """Lets others have a piece."""
        self._lock(number, fcntl.LOCK_UN)

    def _lock(self, number: int, how: int) -> bool:
        try:
            fcntl.lockf(self._file, how, 1, number)
        except OSError as error:
            if error.errno not in {errno.EACCES, errno.EAGAIN}:
                raise explain_os_error(error, self._path) from error
            return False
        return True
