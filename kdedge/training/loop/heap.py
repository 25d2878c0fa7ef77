"""Keeps freed CPU memory for the next tensors instead of returning it to the kernel.

glibc returns large blocks to the kernel, which clears them page by page when they are allocated
again. That costs time in every step and does not lower the peak. Use it only for steps whose tensor
sizes repeat: passes over class texts in chunks fragment a heap that is kept, so that it grows.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keeps freed memory until the end; does nothing if the C library is not glibc."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, 65536)
        # glibc no longer adapts these two once one is set: the values that it adapts them to
        libc.mallopt(_M_MMAP_THRESHOLD, 32 * 2**20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 * 2**20)
        libc.malloc_trim(0)
