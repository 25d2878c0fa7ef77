"""Keeps freed CPU memory for the next tensors instead of returning it to the kernel.

glibc returns large blocks to the kernel, which clears them page by page when they are allocated
again. That costs time in every step and does not lower the peak. Use it only for steps whose tensor
sizes repeat: passes over class texts in chunks fragment a heap that is kept, so that it grows.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Makes this process keep freed memory; does nothing if the C library is not glibc."""
    _set(mmap_max=0, trim_threshold=_NEVER)


def give_back_freed_memory() -> None:
    """Restores glibc's defaults."""
    _set(mmap_max=65536, trim_threshold=128 * 1024)


def _set(*, mmap_max: int, trim_threshold: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, mmap_max)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)
