"""Subjects of a measurement: models that can be loaded and called with batches."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kdedge.benchmarking.timing import Call
from kdedge.speed_results import Inputs, ModelFacts


class LoadedSubject(Protocol):
    """A model in memory.

    Attributes:
        runtime: its runtime and version.
        is_gpu: whether it runs on a GPU.
        batches: the smallest and the largest batch that it takes; None for no limit.
        inputs: where its calls can start; see `Measurement`.
        held_bytes: bytes of its weights that were in memory already, as models share weights.
    """

    runtime: str
    is_gpu: bool
    held_bytes: int
    batches: tuple[int, int | None]
    inputs: tuple[Inputs, ...]

    def call(self, batch: int, inputs: Inputs) -> Call:
        """Prepares a batch and returns the call that runs it."""
        ...


@dataclass(frozen=True)
class Subject(ModelFacts):
    """A row of the table before its measurement.

    Attributes:
        load: context in which the model is in memory.
    """

    load: Callable[[], AbstractContextManager[LoadedSubject]]


def resident_bytes() -> int | None:
    """Resident memory of this process; None if the system does not tell."""
    return _status("VmRSS")


@contextlib.contextmanager
def watching_peak() -> Iterator[Callable[[], int | None]]:
    """Context with a function that returns the peak of resident memory above that at its start.

    It returns None if the system cannot reset the peak (outside Linux, and in some containers).
    """
    # Memory that the allocator has kept would be used again without being noticed
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    start = resident_bytes()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        start = None

    def added() -> int | None:
        peak = _status("VmHWM")
        return None if start is None or peak is None else max(0, peak - start)

    yield added


def _status(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{key}:")]
    return int(found[0][1]) * 1024 if found else None
