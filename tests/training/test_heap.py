"""Freed memory is kept: the kernel clears no page twice."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

import kdedge

PAGES = """
import resource
import numpy as np
from kdedge.runtime.process import keep_freed_memory, torch_as_before
for is_kept in (False, True, False):
    with torch_as_before():
        if is_kept:
            keep_freed_memory()
        np.ones(1 << 24)  # 128 MiB
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            np.ones(1 << 24)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) > 1000)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_memory_that_was_freed_is_used_again_without_the_kernel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAGES],
        env={"PYTHONPATH": str(Path(kdedge.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["True", "False", "True"]
