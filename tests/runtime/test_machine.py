"""What machine this is, on systems made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdedge.runtime.machine import memory_bytes


@pytest.mark.parametrize(
    ("limit", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (f"{1 << 60}\n", None)]
)
def test_a_containers_memory_is_what_it_may_use(
    tmp_path: Path, limit: str, expected: int | None
) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(limit)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_bytes(tmp_path) == (expected or total)
