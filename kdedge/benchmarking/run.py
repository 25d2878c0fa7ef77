"""Measures a table: loads every model, then times all of them at each batch size."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone

from kdedge.benchmarking.device import (
    SampledPower,
    conditions,
    device_sheet,
    find_power,
    was_throttled,
)
from kdedge.benchmarking.timing import (
    Call,
    LoadedSubject,
    Subject,
    TimingPlan,
    measure,
    summarize,
    watching_peak,
)
from kdedge.errors import (
    BackendUnavailable,
    Interrupted,
    KdedgeError,
    MissingPackage,
    first_line,
    signum_of,
)
from kdedge.progress import progress
from kdedge.records.speed import Measurement, ModelFacts, SpeedResult, SpeedRow, TimedFrom
from kdedge.runs.folder import command_line
from kdedge.runtime.machine import Watch, watch_contention

log = logging.getLogger(__name__)

_CALL_INPUTS: tuple[TimedFrom, ...] = ("on device", "copied")


@dataclass
class _Row:
    """A model while it is measured."""

    subject: Subject
    loaded: LoadedSubject | None = None
    memory_bytes: int | None = None
    first_ms: float = 0.0
    problem: Exception | None = None
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def device(self) -> str:
        """The device that computes."""
        return "CPU" if self.loaded is None or self.loaded.gpu is None else "GPU"

    def fail(self, error: Exception) -> None:
        """Ends its measurement."""
        log.warning("%s ended early: %s", self.subject.label, error)
        self.problem = error

    def result(self) -> SpeedRow:
        """The record of its measurements."""
        facts = {entry.name: getattr(self.subject, entry.name) for entry in fields(ModelFacts)}
        return SpeedRow(
            **facts,
            runtime="-" if self.loaded is None else self.loaded.runtime,
            device=self.device,
            memory_bytes=self.memory_bytes,
            problem=None if self.problem is None else first_line(self.problem),
            measurements=tuple(self.measurements),
        )


def run_bench(
    subjects: Sequence[Subject],
    *,
    plan: TimingPlan,
    batches: Sequence[int],
    n_threads: int | None,
    left_out: dict[str, str],
    find_sensor: Callable[[], SampledPower | None] = find_power,
    watch: Watch = watch_contention,
) -> SpeedResult:
    """Measures models on this machine.

    Args:
        subjects: the models, the baseline of ratios first.
        plan: how long each is timed.
        batches: images per call; a model is left out at batches that it does not take.
        n_threads: CPU threads, for the record; None for each library's default.
        left_out: models that are already left out, and why.
        find_sensor: returns the power sensor of this machine.
        watch: watches the load of other processes, like `watch_contention`.

    Raises:
        KdedgeError: no model could be measured; it is the first model's error.
        Interrupted: Ctrl-C or SIGTERM came after a measurement; `result` has what was measured.
    """
    bench = _Bench(plan, dict(left_out), watch)
    before = conditions()
    interrupt: KeyboardInterrupt | None = None
    with ExitStack() as held:
        bench.load(subjects, held)
        try:
            bench.measure(batches, find_sensor())
        except KeyboardInterrupt as error:
            if not any(row.measurements for row in bench.rows):
                raise
            interrupt = error
            bench.left_out["the remaining measurements"] = "the measurement was interrupted"
        rows = [row.result() for row in bench.rows]
    errors = [row.problem for row in bench.rows if row.problem is not None]
    if errors and not any(row.measurements for row in rows):
        raise errors[0]
    after = conditions()
    result = SpeedResult(
        command=shlex.join(command_line()),
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings={**asdict(plan), "batches": list(batches), "threads": n_threads},
        device={
            **device_sheet(),
            "before": before,
            "after": after,
            "throttled": was_throttled(before, after),
        },
        baseline=None if bench.baseline is None else bench.baseline.subject.label,
        rows=tuple(rows),
        left_out=bench.left_out,
    )
    if interrupt is not None:
        interrupted = Interrupted(
            "interrupted: the other rows were not measured.", signum=signum_of(interrupt)
        )
        interrupted.result = result
        raise interrupted from interrupt
    return result


class _Bench:
    """Loads models, and times them against each other.

    Attributes:
        rows: the models, without those that this machine cannot run.
        left_out: what is not measured, and why.
        baseline: the first row that was ever timed, with which ratios compare; None before.
    """

    def __init__(self, plan: TimingPlan, left_out: dict[str, str], watch: Watch) -> None:
        self.rows: list[_Row] = []
        self.left_out = left_out
        self.baseline: _Row | None = None
        self._plan, self._watch = plan, watch

    def load(self, subjects: Sequence[Subject], held: ExitStack) -> None:
        """Loads the models that this machine can run; failures are recorded.

        Raises:
            MissingPackage, BackendUnavailable: nothing can run here; it is the first model's error.
        """
        absent: list[KdedgeError] = []
        with progress("loading", len(subjects)) as advance:
            for number, subject in enumerate(subjects):
                advance(number, subject.label)
                row = _Row(subject)
                try:
                    _load(row, held)
                except (MissingPackage, BackendUnavailable) as error:
                    self.left_out[subject.label] = first_line(error)
                    absent.append(error)
                    continue
                except (KdedgeError, RuntimeError, MemoryError) as error:
                    row.fail(error)
                self.rows.append(row)
        if absent and not self.rows:
            raise absent[0]

    def measure(self, batches: Sequence[int], power: SampledPower | None) -> None:
        """Times all rows against each other, at every batch size and then from an image file."""
        turns: list[tuple[int, TimedFrom]] = [
            (batch, inputs) for batch in batches for inputs in _CALL_INPUTS
        ]
        turns.append((1, "image file"))
        able = [self._able(batch, inputs) for batch, inputs in turns]
        done = 0
        with progress("measuring", sum(map(len, able)) * self._plan.n_rounds) as advance:

            def after_turn(label: str) -> None:
                nonlocal done
                done += 1
                advance(done, label.partition(" ")[2])

            for (batch, inputs), rows in zip(turns, able, strict=True):
                self._measure_turn(rows, batch, inputs, power, after_turn)

    def _able(self, batch: int, inputs: TimedFrom) -> list[_Row]:
        """The rows that can be timed at this batch and input; `left_out` gets the others."""
        able = []
        for row in self.rows:
            if row.loaded is None or row.problem is not None or inputs not in row.loaded.inputs:
                continue
            low, high = row.loaded.batches
            # By its work, and the time of the first call, which had `low` images
            now, then = row.subject.gmacs(batch), row.subject.gmacs(low)
            seconds = batch / low * (now / then if now and then else 1) * row.first_ms / 1000
            if batch < low or (high is not None and batch > high):
                images = "" if low == high else f"to {high} images "
                why_not = f"it takes {low} {images}per call"
            elif seconds > self._plan.call_seconds:
                why_not = f"a call would take about {seconds:.0f} s"
            else:
                able.append(row)
                continue
            self.left_out.setdefault(f"{row.subject.label}, batch {batch}", why_not)
        return able

    def _measure_turn(
        self,
        rows: Sequence[_Row],
        batch: int,
        inputs: TimedFrom,
        power: SampledPower | None,
        after_turn: Callable[[str], None],
    ) -> None:
        """Times rows against each other, without those that have failed meanwhile."""
        calls: dict[str, Call] = {}
        by_key: dict[str, _Row] = {}
        for number, row in enumerate(rows):
            if row.loaded is None or row.problem is not None:
                continue
            key = f"{number} {row.subject.label}"
            try:
                calls[key], by_key[key] = row.loaded.call(batch, inputs), row
            except (KdedgeError, RuntimeError, MemoryError) as error:
                row.fail(error)
        plan, watch = self._plan, self._watch
        timed = measure(calls, plan, power=power, watch=watch, after_turn=after_turn)
        if self.baseline is None:
            self.baseline = next((by_key[key] for key, time in timed.items() if time.rounds), None)
        against = next((time for key, time in timed.items() if by_key[key] is self.baseline), None)
        for key, time in timed.items():
            row = by_key[key]
            if power is None or row.loaded is None or not power.covers(row.loaded.gpu):
                time.watts = None
            summary = summarize(time, batch=batch, inputs=inputs, baseline=against)
            if summary is not None:
                if row.device == "GPU":  # a GPU keeps computing when others use the cores
                    summary = replace(summary, others_percent=None)
                row.measurements.append(summary)
            if time.problem is not None:
                row.fail(time.problem)


def _load(row: _Row, held: ExitStack) -> None:
    """Loads a row's model; a first call measures its memory, and about how long calls take."""
    with watching_peak() as added:
        row.loaded = held.enter_context(row.subject.load())
        low, _ = row.loaded.batches
        row.first_ms = row.loaded.call(low, row.loaded.inputs[0])()
        extra = added()
    if row.device == "GPU":
        row.memory_bytes = row.loaded.gpu_bytes()
    else:
        row.memory_bytes = None if extra is None else row.loaded.held_bytes + extra
