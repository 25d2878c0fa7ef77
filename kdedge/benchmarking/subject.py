"""What is measured: a model that can be loaded, and gives calls of any batch it takes."""

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
        runtime: what runs it, with its version.
        is_gpu: whether that is on a GPU.
        batches: the smallest and the largest batch that it takes; None where there is no limit.
        inputs: where its calls can start.
        held_bytes: memory of its that was taken before it was loaded, as models share weights.
    """

    runtime: str
    is_gpu: bool
    held_bytes: int
    batches: tuple[int, int | None]
    inputs: tuple[Inputs, ...]

    def call(self, batch: int, inputs: Inputs) -> Call:
        """Prepares a batch and gives what runs it."""
        ...


@dataclass(frozen=True)
class Subject(ModelFacts):
    """A row of the table before it is measured.

    Attributes:
        load: context in which the model is in memory.
    """

    load: Callable[[], AbstractContextManager[LoadedSubject]]


def resident_bytes() -> int | None:
    """Memory of this process that is in RAM; None where the system does not say."""
    return _status("VmRSS")


@contextlib.contextmanager
def watching_peak() -> Iterator[Callable[[], int | None]]:
    """Context with what gives the peak of resident memory since it was entered, above its start.

    None where the system cannot forget an earlier peak (outside Linux, and in some containers).
    """
    # What was freed before and is kept by the allocator would be taken again without a trace
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
