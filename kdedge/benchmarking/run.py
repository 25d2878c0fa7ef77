"""Measures a table: loads every model, then times all of them at each batch size."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from typing import Any

from kdedge.benchmarking.device import (
    SampledPower,
    conditions,
    device_sheet,
    find_power,
    was_throttled,
)
from kdedge.benchmarking.timing import (
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
from kdedge.runs.folder import command_line
from kdedge.runtime.machine import Watch, watch_contention
from kdedge.speed_results import Measurement, ModelFacts, SpeedResult, SpeedRow, TimedFrom

log = logging.getLogger(__name__)

_CALL_INPUTS: tuple[TimedFrom, ...] = ("on device", "copied")


@dataclass
class _Row:
    """The state of a row while it is measured."""

    subject: Subject
    loaded: LoadedSubject | None = None
    memory_bytes: int | None = None
    first_ms: float = 0.0
    problem: Exception | None = None
    is_baseline: bool = False
    measurements: list[Measurement] = field(default_factory=list)

    @property
    def device(self) -> str:
        """The device that computes."""
        return "CPU" if self.loaded is None or self.loaded.gpu is None else "GPU"


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
    left_out = dict(left_out)
    before = conditions()
    interrupt: KeyboardInterrupt | None = None
    with ExitStack() as held:
        rows = _load_all(subjects, held, left_out)
        try:
            _measure_all(rows, plan, batches, left_out, power=find_sensor(), watch=watch)
        except KeyboardInterrupt as error:
            if not any(row.measurements for row in rows):
                raise
            interrupt = error
            left_out["the remaining measurements"] = "the measurement was interrupted"
        finished = [_finish(row) for row in rows]
    errors = [row.problem for row in rows if row.problem is not None]
    if errors and not any(row.measurements for row in finished):
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
        baseline=next((row.subject.label for row in rows if row.is_baseline), None),
        rows=tuple(finished),
        left_out=left_out,
    )
    if interrupt is not None:
        interrupted = Interrupted(
            "interrupted: the other rows were not measured.", signum=signum_of(interrupt)
        )
        interrupted.result = result
        raise interrupted from interrupt
    return result


def _load_all(subjects: Sequence[Subject], held: ExitStack, left_out: dict[str, str]) -> list[_Row]:
    """Loads the models that this machine can run; failures are recorded.

    Raises:
        MissingPackage, BackendUnavailable: nothing can run here; it is the first model's error.
    """
    rows: list[_Row] = []
    absent: list[KdedgeError] = []
    with progress("loading", len(subjects)) as advance:
        for number, subject in enumerate(subjects):
            advance(number, subject.label)
            row = _Row(subject)
            try:
                _load(row, held)
            except (MissingPackage, BackendUnavailable) as error:
                left_out[subject.label] = first_line(error)
                absent.append(error)
                continue
            except (KdedgeError, RuntimeError, MemoryError) as error:
                log.warning("%s: %s", subject.label, error)
                row.problem = error
            rows.append(row)
    if absent and not rows:
        raise absent[0]
    return rows


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


def _measure_all(
    rows: Sequence[_Row],
    plan: TimingPlan,
    batches: Sequence[int],
    left_out: dict[str, str],
    *,
    power: SampledPower | None,
    watch: Watch,
) -> None:
    """Times all rows against each other, at every batch size and then from an image file."""
    turns: list[tuple[int, TimedFrom]] = [
        (batch, inputs) for batch in batches for inputs in _CALL_INPUTS
    ]
    turns.append((1, "image file"))
    able = [_able(rows, batch, inputs, plan, left_out) for batch, inputs in turns]
    baseline: _Row | None = None
    done = 0
    with progress("measuring", sum(map(len, able)) * plan.n_rounds) as advance:

        def after_turn(label: str) -> None:
            nonlocal done
            done += 1
            advance(done, label.partition(" ")[2])

        for (batch, inputs), timed_rows in zip(turns, able, strict=True):
            still = [row for row in timed_rows if row.problem is None]
            baseline = _measure_turn(still, baseline, plan, batch, inputs, power, watch, after_turn)


def _able(
    rows: Sequence[_Row],
    batch: int,
    inputs: TimedFrom,
    plan: TimingPlan,
    left_out: dict[str, str],
) -> list[_Row]:
    """The rows that can be timed at this batch and input; the others are added to `left_out`."""
    able = []
    for row in rows:
        if row.loaded is None or row.problem is not None or inputs not in row.loaded.inputs:
            continue
        why_not = _why_not(row, batch, row.loaded.batches, plan)
        if why_not is None:
            able.append(row)
        else:
            left_out.setdefault(f"{row.subject.label}, batch {batch}", why_not)
    return able


def _why_not(
    row: _Row, batch: int, batches: tuple[int, int | None], plan: TimingPlan
) -> str | None:
    """Why a row is not timed at a batch size; None if it is."""
    low, high = batches
    if batch < low or (high is not None and batch > high):
        return f"it takes {low} {'' if low == high else f'to {high} images '}per call"
    # By its work, and the time of the first call, which had `low` images
    now, then = row.subject.gmacs(batch), row.subject.gmacs(low)
    seconds = batch / low * (now / then if now and then else 1) * row.first_ms / 1000
    if seconds > plan.call_seconds:
        return f"a call would take about {seconds:.0f} s"
    return None


def _measure_turn(
    rows: Sequence[_Row],
    baseline: _Row | None,
    plan: TimingPlan,
    batch: int,
    inputs: TimedFrom,
    power: SampledPower | None,
    watch: Watch,
    after_turn: Any,
) -> _Row | None:
    """Times rows against each other; returns the baseline: the first row that was ever timed."""
    calls = {}
    by_key = {}
    for number, row in enumerate(rows):
        assert row.loaded is not None  # otherwise it does not take the batch
        try:
            key = f"{number} {row.subject.label}"
            calls[key], by_key[key] = row.loaded.call(batch, inputs), row
        except (KdedgeError, RuntimeError, MemoryError) as error:
            _keep_problem(row, error)
    timed = measure(calls, plan, power=power, watch=watch, after_turn=after_turn)
    if baseline is None:
        baseline = next((by_key[key] for key, time in timed.items() if time.rounds), None)
        if baseline is not None:
            baseline.is_baseline = True
    against = next((time for key, time in timed.items() if by_key[key] is baseline), None)
    for key, time in timed.items():
        loaded = by_key[key].loaded
        if power is None or loaded is None or not power.covers(loaded.gpu):
            time.watts = None
        summary = summarize(time, batch=batch, inputs=inputs, baseline=against)
        if summary is not None:
            if by_key[key].device == "GPU":  # a GPU keeps computing when others use the cores
                summary = replace(summary, others_percent=None)
            by_key[key].measurements.append(summary)
        if time.problem is not None:
            _keep_problem(by_key[key], time.problem)
    return baseline


def _keep_problem(row: _Row, error: Exception) -> None:
    log.warning("%s ended early: %s", row.subject.label, error)
    row.problem = error


def _finish(row: _Row) -> SpeedRow:
    facts = {entry.name: getattr(row.subject, entry.name) for entry in fields(ModelFacts)}
    return SpeedRow(
        **facts,
        runtime="-" if row.loaded is None else row.loaded.runtime,
        device=row.device,
        memory_bytes=row.memory_bytes,
        problem=None if row.problem is None else first_line(row.problem),
        measurements=tuple(row.measurements),
    )
