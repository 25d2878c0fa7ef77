"""Times several models in one process, interleaved, so that drift of the machine affects all alike.

Each model's calls are spread over rounds. In each round every model has a turn: a pause, a few
unmeasured calls, then its share of timed ones. Ratios are computed per round, in which the models
run within seconds of each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from kdedge.benchmarking.device import SampledPower
from kdedge.errors import KdedgeError
from kdedge.records.speed import Measurement, ModelFacts, TimedFrom
from kdedge.runtime.machine import Contention, Watch, all_of, watch_contention

# ONNX Runtime's threads spin for a while after a call and slow down the next model
_PAUSE_S = 0.05
_WARM_UP_CALLS = 3
_WARM_UP_S = 0.2
# Load of other processes is counted in ticks of 10 ms, too coarse for a shorter time
_MIN_WATCHED_S = 0.3


_Key = TypeVar("_Key", bound=Hashable)

# Runs one batch, until its result is complete, and returns its time in ms
TimedCall = Callable[[], float]


def host_timed(work: Callable[[], Any]) -> TimedCall:
    """A call timed by the host's monotonic clock; the work returns when its result is complete."""

    def call() -> float:
        began = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - began)

    return call


@dataclass(frozen=True)
class TimingPlan:
    """How long each model is timed at each batch size.

    Attributes:
        seconds: shortest total time of the calls.
        n_calls: smallest number of calls, unless they take longer than `most_seconds`.
        most_seconds: time limit for slow calls; at least 3 calls are made.
        call_seconds: a model with longer calls is left out.
        n_rounds: number of rounds.
    """

    seconds: float = 2.0
    n_calls: int = 20
    most_seconds: float = 20.0
    call_seconds: float = 10.0
    n_rounds: int = 5

    def calls_for(self, call_ms: float) -> int:
        """The number of timed calls if each takes this long."""
        call_s = max(call_ms, 1e-3) / 1000
        n_calls = max(self.n_calls, math.ceil(self.seconds / call_s))
        return max(3, min(n_calls, math.floor(self.most_seconds / call_s)))


@dataclass
class Timed:
    """One model's times at one batch size.

    Attributes:
        rounds: ms of the timed calls, by round.
        problem: the error that ended its calls; None if there was no error.
        power: samples of the power in watts, during the timed calls.
        contention: load by other processes during the timed calls, by round.
    """

    rounds: list[list[float]] = field(default_factory=list)
    problem: Exception | None = None
    power: list[float] = field(default_factory=list)
    contention: list[Contention] = field(default_factory=list)

    @property
    def samples(self) -> list[float]:
        """All timed calls."""
        return [sample for calls in self.rounds for sample in calls]


def measure(
    calls: Mapping[_Key, TimedCall],
    plan: TimingPlan,
    *,
    power: SampledPower | None = None,
    watch: Watch = watch_contention,
    after_turn: Callable[[_Key], None] | None = None,
) -> dict[_Key, Timed]:
    """Times models against each other; a failing model does not stop the others.

    Args:
        calls: calls by key; all run batches of the same size.
        plan: how long to time each model.
        power: the power sensor; None for none.
        watch: watches the load of other processes, like `watch_contention`.
        after_turn: called when a turn has ended.

    Returns:
        The times by key. A model has the plan's rounds, or fewer if it has fewer calls.
    """
    timed = {key: Timed() for key in calls}
    warm_ms: dict[_Key, float] = {}
    for key, call in calls.items():
        with _recording_errors(timed[key]):
            warm_up = [call()]
            while len(warm_up) < _WARM_UP_CALLS and sum(warm_up) < 1000 * _WARM_UP_S:
                warm_up.append(call())
            warm_ms[key] = min(warm_up)
    for number in range(plan.n_rounds):
        for key, call in calls.items():
            times = timed[key]
            n_calls = 0 if times.problem else _calls_in_round(plan, warm_ms[key], number)
            if n_calls:
                with _recording_errors(times):
                    time.sleep(_PAUSE_S)
                    if warm_ms[key] < 1000 * _WARM_UP_S:
                        for _ in range(_WARM_UP_CALLS):
                            call()  # the first calls after a pause are slower
                    since = watch()
                    with contextlib.nullcontext() if power is None else power.during(times.power):
                        times.rounds.append([call() for _ in range(n_calls)])
                    times.contention.append(since())
            if after_turn is not None:
                after_turn(key)
    return timed


def _calls_in_round(plan: TimingPlan, call_ms: float, number: int) -> int:
    """Number of timed calls of a round: the calls spread evenly, at least one in each round."""
    n_calls = plan.calls_for(call_ms)
    n_rounds = min(plan.n_rounds, n_calls)
    if number >= n_rounds:
        return 0
    n_each, n_left = divmod(n_calls, n_rounds)
    return n_each + 1 if number < n_left else n_each


@contextlib.contextmanager
def _recording_errors(timed: Timed) -> Iterator[None]:
    """Context that records an engine's or torch's error, so that earlier measurements remain."""
    try:
        yield
    except (KdedgeError, RuntimeError, MemoryError) as error:
        timed.problem = error.with_traceback(None)  # whose frames hold the tensors


def summarize(
    timed: Timed, *, batch: int, inputs: TimedFrom, baseline: Timed | None
) -> Measurement | None:
    """Percentiles and ratios of the times; None if there are none.

    Args:
        timed: the model's times.
        batch: images per call.
        inputs: where the input of its calls starts.
        baseline: times of the model that ratios compare with, by the medians of each round.
    """
    samples = timed.samples
    if not samples:
        return None
    mean = statistics.fmean(samples)
    contention = all_of(timed.contention)
    is_known = contention.seconds >= _MIN_WATCHED_S
    pairs = zip([] if baseline is None else baseline.rounds, timed.rounds, strict=False)
    ratios = [statistics.median(first) / statistics.median(second) for first, second in pairs]
    return Measurement(
        batch=batch,
        inputs=inputs,
        n_calls=len(samples),
        p50_ms=statistics.median(samples),
        p90_ms=percentile(samples, 90),
        p99_ms=percentile(samples, 99),
        mean_ms=mean,
        cv_percent=100 * statistics.pstdev(samples) / mean,
        images_per_second=1000 * batch / mean,
        ratio=statistics.median(ratios) if ratios else None,
        ratio_low=min(ratios, default=None),
        ratio_high=max(ratios, default=None),
        watts=statistics.fmean(timed.power) if timed.power else None,
        samples_ms=tuple(samples),
        others_percent=contention.others_percent if is_known else None,
    )


def percentile(samples: list[float], percent: float) -> float:
    """The smallest sample that at least this percentage of samples do not exceed: nearest rank."""
    ordered = sorted(samples)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class LoadedSubject:
    """Base class of models in memory.

    Attributes:
        runtime: its runtime and version.
        gpu: the GPU that it runs on, as CUDA counts; None on the CPU.
        batches: the smallest and the largest batch that it takes; None for no limit.
        inputs: where the input of its calls can start; see `Measurement`.
        held_bytes: bytes of its weights that were in memory before, as models share weights.
    """

    runtime: str
    gpu: int | None = None
    held_bytes: int = 0
    batches: tuple[int, int | None] = (1, None)
    inputs: tuple[TimedFrom, ...] = ("on device",)

    def call(self, batch: int, inputs: TimedFrom) -> TimedCall:
        """Prepares a batch and returns the call that runs it."""
        raise NotImplementedError

    def gpu_bytes(self) -> int | None:
        """GPU memory of its weights plus the peak of its calls; None if it is not known."""
        return None


@dataclass(frozen=True)
class Subject(ModelFacts):
    """A row of the table before its measurement.

    Attributes:
        load: context in which the model is in memory.
    """

    load: Callable[[], AbstractContextManager[LoadedSubject]]


@contextlib.contextmanager
def watching_peak() -> Iterator[Callable[[], int | None]]:
    """Context with a function that returns by how much resident memory peaked above its start.

    It returns None if the system cannot reset the peak (outside Linux, and in some containers).
    """
    # Otherwise free memory that the allocator has kept would be used again and not counted
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    start = _proc_status_bytes("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        start = None

    def added() -> int | None:
        peak = _proc_status_bytes("VmHWM")
        return None if start is None or peak is None else max(0, peak - start)

    yield added


def _proc_status_bytes(key: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    entries = [line.split() for line in lines if line.startswith(f"{key}:")]
    return int(entries[0][1]) * 1024 if entries else None
