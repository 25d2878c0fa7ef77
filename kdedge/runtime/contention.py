"""Measures how much other processes use this machine, by the system's counters."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from kdedge.runtime.machine import cpu_cores

_LOG = logging.getLogger(__name__)
_SYSTEM = Path("/")
_LOOK_S = 0.5


@dataclass(frozen=True)
class Contention:
    """Use of this process's cores by others, in a period of time.

    Attributes:
        seconds: length of the period.
        n_cores: cores that this process may use.
        others_s: CPU time on these cores of other processes, or of the hypervisor's other
            machines; None if unknown.
        preempted: how often a thread of this process lost its core while it had work to do; None
            if unknown.
    """

    seconds: float
    n_cores: int
    others_s: float | None
    preempted: int | None

    @property
    def others_cores(self) -> float | None:
        """Cores that others kept busy; None if unknown."""
        if self.others_s is None or self.seconds <= 0:
            return None
        return max(0.0, self.others_s / self.seconds)

    @property
    def others_percent(self) -> float | None:
        """Share of the cores that others kept busy, in percent; None if unknown."""
        return None if self.others_cores is None else 100 * self.others_cores / self.n_cores

    @property
    def preempted_per_second(self) -> float | None:
        """Preemptions per second; None if unknown."""
        if self.preempted is None or self.seconds <= 0:
            return None
        return self.preempted / self.seconds


Watch = Callable[[], Callable[[], Contention]]
"""Starts a period when called; returns a function that gives its `Contention` so far."""


def all_of(parts: Iterable[Contention]) -> Contention:
    """Sums several periods."""
    parts = list(parts)
    others = [part.others_s for part in parts if part.others_s is not None]
    preempted = [part.preempted for part in parts if part.preempted is not None]
    return Contention(
        sum(part.seconds for part in parts),
        max((part.n_cores for part in parts), default=1),
        sum(others) if len(others) == len(parts) else None,
        sum(preempted) if len(preempted) == len(parts) else None,
    )


def watch_contention(root: Path = _SYSTEM) -> Callable[[], Contention]:
    """Starts a period; returns a function that gives its `Contention` so far.

    Args:
        root: root of the file system.
    """
    began, cpu, own, preempted = time.monotonic(), _cpu_s(root), time.process_time(), _preempted()

    def since() -> Contention:
        taken = _difference(_cpu_s(root), cpu)
        others = None if taken is None else taken - (time.process_time() - own)
        count = _difference(_preempted(), preempted)
        seconds = time.monotonic() - began
        return Contention(seconds, cpu_cores(), others, None if count is None else int(count))

    return since


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def _cpu_s(root: Path) -> float | None:
    """CPU time of all processes, and stolen time, on the cores that this process may use."""
    try:
        lines = (root / "proc/stat").read_text(encoding="ascii").splitlines()
        allowed = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        ticks_per_s = os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):  # no Linux
        return None
    ticks = 0
    for line in lines:
        name, *counts = line.split()
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, stolen = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + stolen
    return ticks / ticks_per_s


def _preempted() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class QuietWait:
    """Waits until other processes leave the cores, for a limited total time.

    Args:
        seconds: total time to wait, over all calls.
        most_percent: share of the cores that others may keep busy.
        watch: measures the use by others.
    """

    def __init__(
        self, seconds: float, *, most_percent: float, watch: Watch = watch_contention
    ) -> None:
        self._left_s, self._most_percent, self._watch = seconds, most_percent, watch

    def __call__(self) -> None:
        """Waits, and logs for how long, and whether the machine became quiet."""
        began = time.monotonic()
        while self._left_s > 0:
            since = self._watch()
            look_s = min(_LOOK_S, self._left_s)
            time.sleep(look_s)
            self._left_s -= look_s
            percent = since().others_percent
            if percent is None:
                self._left_s = 0
                _LOG.warning(
                    "This system does not show whether other processes are busy, so kdedge"
                    " does not wait."
                )
            elif percent <= self._most_percent:
                waited = time.monotonic() - began
                if waited >= 2 * _LOOK_S:
                    _LOG.info("Waited %.0f s until the machine was quiet.", waited)
                return
            elif self._left_s <= 0:
                _LOG.warning(
                    "The machine is not quiet after %.0f s: other processes keep %.0f %% of its"
                    " cores busy. Measuring anyway.",
                    *(time.monotonic() - began, percent),
                )
