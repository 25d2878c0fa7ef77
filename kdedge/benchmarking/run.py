"""Measures a table: loads every model, then times all of them at each batch size."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone

from kdedge.benchmarking.device import SampledPower, conditions, device_sheet, was_throttled
from kdedge.benchmarking.timing import (
    LoadedSubject,
    Subject,
    TimedCall,
    TimingPlan,
    measure,
    summarize,
    watching_peak,
)
from kdedge.errors import BackendUnavailable, Interrupted, KdedgeError, MissingPackage, signum_of
from kdedge.messages import first_line
from kdedge.progress import progress
from kdedge.records.speed import Measurement, ModelFacts, SpeedResult, SpeedRow, TimedFrom
from kdedge.runs.folder import command_line
from kdedge.runtime.machine import Watch, watch_contention

log = logging.getLogger(__name__)


@dataclass(eq=False)
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
        """Records the error that ends the model's measurement."""
        log.warning(f"{self.subject.label} ended early: {error}")
        self.problem = error.with_traceback(None)  # whose frames hold the tensors

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


@dataclass(frozen=True)
class _Turn:
    """Rows that are timed against each other.

    Attributes:
        batch: images per call.
        inputs: where the input of calls starts.
        rows: what is timed.
    """

    batch: int
    inputs: TimedFrom
    rows: list[_Row] = field(default_factory=list)


def run_bench(
    subjects: Sequence[Subject],
    *,
    plan: TimingPlan,
    batches: Sequence[int],
    n_threads: int | None,
    left_out: dict[str, str],
    power: SampledPower | None = None,
    watch: Watch = watch_contention,
) -> SpeedResult:
    """Measures models on this machine.

    Args:
        subjects: the models, the baseline of ratios first.
        plan: how long each model is timed.
        batches: images per call; a model is left out at batches that it does not take.
        n_threads: CPU threads, for the record; None for each library's default.
        left_out: models that are already left out, and why.
        power: the power sensor of this machine, if it has one.
        watch: watches the load of other processes, like `watch_contention`.

    Raises:
        KdedgeError: no model could be measured; it is the first model's error.
        Interrupted: Ctrl-C or SIGTERM came after a measurement; `result` has the measurements.
    """
    left_out = dict(left_out)
    before = conditions()
    interrupt: KeyboardInterrupt | None = None
    with ExitStack() as held:
        loaded = _load(subjects, held, left_out)
        turns = _plan_turns(loaded, batches, plan, left_out)
        baseline = next((turn.rows[0] for turn in turns if turn.rows), None)
        try:
            _measure(turns, baseline, plan, power, watch)
        except KeyboardInterrupt as error:
            if not any(row.measurements for row in loaded):
                raise
            interrupt = error
            left_out["the remaining measurements"] = "the measurement was interrupted"
        rows = [row.result() for row in loaded]
    errors = [row.problem for row in loaded if row.problem is not None]
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
        baseline=None if baseline is None else baseline.subject.label,
        rows=tuple(rows),
        left_out=left_out,
    )
    if interrupt is not None:
        interrupted = Interrupted(
            "interrupted: the other rows were not measured.", signum=signum_of(interrupt)
        )
        interrupted.result = result
        raise interrupted from interrupt
    return result


def _load(subjects: Sequence[Subject], held: ExitStack, left_out: dict[str, str]) -> list[_Row]:
    """Loads the models that this machine can run; adds the others to `left_out`.

    A first call measures a model's memory, and roughly the time of a call.

    Raises:
        MissingPackage, BackendUnavailable: no model can run here; it is the first model's error.
    """
    rows: list[_Row] = []
    unavailable: list[KdedgeError] = []
    with progress("loading", len(subjects)) as advance:
        for number, subject in enumerate(subjects):
            advance(number, subject.label)
            row = _Row(subject)
            try:
                with watching_peak() as added:
                    loaded = row.loaded = held.enter_context(subject.load())
                    call = loaded.call(loaded.batches[0], loaded.inputs[0])
                    row.first_ms = call()
                    extra = added()
                row.memory_bytes = None if extra is None else loaded.held_bytes + extra
                if row.device == "GPU":
                    row.memory_bytes = loaded.gpu_bytes()
                    row.first_ms = call()  # the first one also loads or compiles kernels
            except (MissingPackage, BackendUnavailable) as error:
                left_out[subject.label] = first_line(error)
                unavailable.append(error)
                continue
            except (KdedgeError, RuntimeError, MemoryError) as error:
                row.fail(error)
            rows.append(row)
    if unavailable and not rows:
        raise unavailable[0]
    return rows


def _plan_turns(
    rows: Sequence[_Row], batches: Sequence[int], plan: TimingPlan, left_out: dict[str, str]
) -> list[_Turn]:
    """Plans all batch sizes, on the device and with copies, then image files; fills `left_out`."""
    starts: tuple[TimedFrom, ...] = ("on device", "copied")
    turns: list[_Turn] = []
    for batch in batches:
        turns += [_Turn(batch, inputs) for inputs in starts]
    turns.append(_Turn(1, "image file"))
    for turn in turns:
        batch = turn.batch
        for row in rows:
            if row.loaded is None or row.problem is not None:
                continue
            if turn.inputs not in row.loaded.inputs:
                continue
            low, high = row.loaded.batches
            # Estimated from its work and the time of the first call, which had `low` images
            gmacs = row.subject.gmacs(batch)
            first = row.subject.gmacs(low)
            more_work = gmacs / first if gmacs and first else 1
            seconds = batch / low * more_work * row.first_ms / 1000
            if batch < low or (high is not None and batch > high):
                images = "" if low == high else f"to {high} images "
                why_not = f"it takes {low} {images}per call"
            elif seconds > plan.call_seconds:
                why_not = f"a call would take about {seconds:.0f} s"
            else:
                turn.rows.append(row)
                continue
            left_out.setdefault(f"{row.subject.label}, batch {batch}", why_not)
    return turns


def _measure(
    turns: Sequence[_Turn],
    baseline: _Row | None,
    plan: TimingPlan,
    power: SampledPower | None,
    watch: Watch,
) -> None:
    """Times the rows of each turn against each other; rows that have failed are skipped."""
    done = 0
    n_rounds = plan.n_rounds * sum(len(turn.rows) for turn in turns)
    with progress("measuring", n_rounds) as advance:

        def after_turn(row: _Row) -> None:
            nonlocal done
            done += 1
            advance(done, row.subject.label)

        for turn in turns:
            calls: dict[_Row, TimedCall] = {}
            for row in turn.rows:
                if row.loaded is not None and row.problem is None:
                    try:
                        calls[row] = row.loaded.call(turn.batch, turn.inputs)
                    except (KdedgeError, RuntimeError, MemoryError) as error:
                        row.fail(error)
            timed = measure(calls, plan, power=power, watch=watch, after_turn=after_turn)
            against = None if baseline is None else timed.get(baseline)
            for row, time in timed.items():
                assert row.loaded is not None  # since it was timed
                # Watts are of copy and computing; "on device" may be the time of computing alone
                is_partial = turn.inputs == "on device" and "copied" in row.loaded.inputs
                if power is not None and (is_partial or row.loaded.gpu not in power.devices):
                    time.power.clear()
                summary = summarize(time, batch=turn.batch, inputs=turn.inputs, baseline=against)
                if summary is not None:
                    if row.device == "GPU":  # a GPU keeps computing when others use the cores
                        summary = replace(summary, others_percent=None)
                    row.measurements.append(summary)
                if time.problem is not None:
                    row.fail(time.problem)
