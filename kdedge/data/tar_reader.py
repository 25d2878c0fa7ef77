"""A file for tarfile that limits each read, against malicious headers."""

from __future__ import annotations

import tarfile
from typing import Any

MAX_READ_BYTES = 1 << 20
"""A header may claim terabytes, and tarfile would read them in one call."""


class TarReader:
    """A tar file, or a decompressed one, with a limit on each single read.

    Args:
        file: to read from.

    Attributes:
        n_read: number of bytes read so far.
        last: bytes of the last read.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.n_read = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes.

        Raises:
            tarfile.ReadError: `size` is above the limit of a header.
        """
        if not 0 <= size <= MAX_READ_BYTES:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        self.last = bytes(self._file.read(size))
        self.n_read += len(self.last)
        return self.last

    def seek(self, offset: int) -> int:
        """Goes to a position."""
        return int(self._file.seek(offset))

    def tell(self) -> int:
        """Returns the position."""
        return int(self._file.tell())

    def open(self) -> tarfile.TarFile:
        """Opens the file for reading."""
        return tarfile.open(fileobj=self, mode="r:")  # type: ignore[call-overload, no-any-return]
