"""What machine this is, on systems made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdedge.runtime import machine


@pytest.mark.parametrize(
    ("limit", "expected"), [("1048576\n", 1 << 20), ("max\n", None), (f"{1 << 60}\n", None)]
)
def test_a_containers_memory_is_what_it_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, expected: int | None
) -> None:
    (tmp_path / "memory.max").write_text(limit)
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / Path(name).name)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.memory_bytes() == (expected or total)
