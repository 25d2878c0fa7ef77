"""A file for tarfile that no header can make it read far into."""

from __future__ import annotations

import tarfile
from typing import Any

MAX_READ_BYTES = 1 << 20
"""A header may claim to go on for terabytes, and tarfile would ask for them in one piece."""


class TarReader:
    """A tar file, or a decompressed one, with a limit on each single read.

    Args:
        file: to read from.

    Attributes:
        n_read: bytes that were read.
        last: what was read last.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.n_read = 0
        self.last = b""

    def read(self, size: int = -1) -> bytes:
        """Reads up to `size` bytes.

        Raises:
            tarfile.ReadError: that is more than a header may claim.
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
