"""A system made of files, whose clock moves its counters."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest


class System:
    """Two cores that others keep busy.

    Attributes:
        root: of its file system.
        busy_cores: how many of the cores.
        slept: seconds, so far.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.busy_cores, self.slept = root, 0.0, 0.0
        self._ticks = 1000.0
        (root / "proc").mkdir()
        self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        """Lets time pass."""
        self.slept += seconds
        self._ticks += seconds * self.busy_cores * os.sysconf("SC_CLK_TCK")
        user = round(self._ticks) // 2
        idle = 77
        lines = [
            f"cpu0 {user} 0 0 {idle} 3 0 0 {round(self._ticks) - user} 0 0",
            f"cpu1 0 0 5 {idle} 0 0 0 0 0 0",
            f"cpu2 {10 * user} 0 0 0 0 0 0 0 0 0",  # not among those of this process
            "ctxt 1",
        ]
        (self.root / "proc/stat").write_text("\n".join(lines))


@pytest.fixture
def system(system_root: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """That system, with its clock in place of this one's."""
    made = System(system_root)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(time, "sleep", made.sleep)
    monkeypatch.setattr(time, "monotonic", lambda: made.slept)
    monkeypatch.setattr(time, "process_time", lambda: 0.0)
    return made
