"""Freed memory on the CPU: kept for the next tensors and not given back after each.

glibc hands large blocks back to the kernel, which gives them out again page by page, cleared: time
in every step for no lower peak (benchmarks/step_variants.py measures it). It is for steps whose
tensors have the same sizes again and again; passes over class texts in chunks leave holes in a heap
that is kept, which then grows.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc
_NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Makes this process keep what it frees; where the C library is not glibc, nothing is done."""
    _set(mmap_max=0, trim_threshold=_NEVER)


def give_back_freed_memory() -> None:
    """Puts glibc's defaults back."""
    _set(mmap_max=65536, trim_threshold=128 * 1024)


def _set(*, mmap_max: int, trim_threshold: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, mmap_max)
        mallopt(_M_TRIM_THRESHOLD, trim_threshold)
