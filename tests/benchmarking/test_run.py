"""What a bench says of models that run here, on a GPU or not, and where none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from kdedge.benchmarking.device import SampledPower
from kdedge.benchmarking.run import run_bench
from kdedge.benchmarking.timing import LoadedSubject, Subject, TimedCall, TimingPlan
from kdedge.errors import BackendUnavailable
from kdedge.records.speed import TimedFrom
from kdedge.runtime.machine import Contention

SHORT = TimingPlan(seconds=0.01, n_calls=3, n_rounds=1)


def subject(name: str, load: Callable[[], AbstractContextManager[LoadedSubject]]) -> Subject:
    return Subject(
        source="tiny",
        model=name,
        protocol="cached",
        precision="fp16",
        n_parameters=None,
        n_bytes=1,
        gmacs_image=None,
        gmacs_call=0.0,
        accuracy=None,
        gate=None,
        load=load,
    )


@dataclass
class Instant:
    """A model that says how long it takes, in ms by batch, and on which device."""

    gpu: int | None
    runtime: str = "none"
    held_bytes: int = 0
    batches: tuple[int, int | None] = (1, None)
    inputs: tuple[TimedFrom, ...] = ("on device",)
    ms: Callable[[int, TimedFrom], float] = lambda batch, inputs: 1.0

    n_calls: int = 0

    def gpu_bytes(self) -> int:
        return 7

    def call(self, batch: int, inputs: TimedFrom) -> TimedCall:
        def run() -> float:
            self.n_calls += 1
            return self.ms(batch, inputs)

        return run


def absent(message: str) -> Callable[[], AbstractContextManager[Any]]:
    def load() -> AbstractContextManager[Any]:
        raise BackendUnavailable(message)

    return load


def test_nothing_that_runs_here_is_an_error_and_no_empty_table() -> None:
    subjects = [
        subject(name, absent(f"{name} was built for another device."))
        for name in ("a.engine", "b.engine")
    ]
    with pytest.raises(
        BackendUnavailable, match=r"a\.engine was built for another device"
    ) as caught:
        run_bench(subjects, plan=TimingPlan(), batches=[1], n_threads=None, left_out={})
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("devices", "on_cpu"), [((0,), None), ((None, 0), 200.0)], ids=["gpu's", "module's"]
)
def test_watts_are_given_to_models_on_the_measured_devices_alone(
    devices: tuple[int | None, ...], on_cpu: float | None
) -> None:
    power = SampledPower(lambda: 200.0, devices)
    subjects = [
        subject(name, lambda gpu=gpu: nullcontext(Instant(gpu)))
        for name, gpu in (("cpu", None), ("gpu", 0), ("second gpu", 1))
    ]
    result = run_bench(subjects, plan=SHORT, batches=[1], n_threads=None, left_out={}, power=power)
    watts = {row.model: [found.watts for found in row.measurements] for row in result.rows}
    assert watts == {"cpu": [on_cpu], "gpu": [200.0], "second gpu": [None]}


def test_watts_of_copies_and_computing_are_not_given_to_the_time_of_computing() -> None:
    one = subject("m", lambda: nullcontext(Instant(0, inputs=("on device", "copied"))))
    (row,) = measured(one, batches=[1], power=SampledPower(lambda: 200.0, (0,))).rows
    assert [(found.inputs, found.watts) for found in row.measurements] == [
        ("on device", None),
        ("copied", 200.0),
    ]


def measured(one: Subject, **how: Any) -> Any:
    """The table of one model."""
    values = {"plan": SHORT, "batches": [1, 4], "n_threads": None, "left_out": {}}
    return run_bench([one], **(values | how))


def test_a_model_is_left_out_at_batches_that_are_too_large_or_too_slow() -> None:
    model = Instant(gpu=None, batches=(2, 8), ms=lambda batch, inputs: 1000.0 * batch)
    one = replace(subject("m", lambda: nullcontext(model)), gmacs_image=10.0)
    plan = replace(SHORT, call_seconds=5.0)
    result = measured(one, plan=plan, batches=[1, 2, 8, 9])
    assert [found.batch for found in result.rows[0].measurements] == [2]
    assert result.left_out == {
        "m, batch 1": "it takes 2 to 8 images per call",
        "m, batch 8": "a call would take about 8 s",
        "m, batch 9": "it takes 2 to 8 images per call",
    }


def test_memory_is_what_loading_added_above_what_was_held() -> None:
    n_bytes = 128 << 20

    @contextmanager
    def load() -> Iterator[LoadedSubject]:
        np.ones(n_bytes, np.uint8)  # given back at once: the peak counts
        yield Instant(gpu=None, held_bytes=1 << 40)

    (row,) = measured(subject("m", load)).rows
    if row.memory_bytes is None:
        pytest.skip("this system does not forget an earlier peak")
    # The system counts resident pages in batches, for each thread
    assert n_bytes - (1 << 20) <= row.memory_bytes - (1 << 40) < n_bytes + (32 << 20)


def test_memory_of_a_gpu_is_the_gpus_own() -> None:
    (row,) = measured(subject("m", lambda: nullcontext(Instant(gpu=0)))).rows
    assert row.memory_bytes == 7


def test_a_larger_batch_is_left_out_by_the_work_of_the_first_call() -> None:
    """A text encoder's work is that of a call, whatever the batch."""
    model = Instant(gpu=None, ms=lambda batch, inputs: 2000.0)
    one = replace(
        subject("CoOp, paper", lambda: nullcontext(model)), gmacs_image=0.001, gmacs_call=0.1
    )
    result = measured(one, plan=replace(SHORT, call_seconds=10), batches=[1, 8, 1000])
    assert [found.batch for found in result.rows[0].measurements] == [1, 8]
    assert result.left_out == {f"{one.label}, batch 1000": "a call would take about 22 s"}


def test_the_first_call_on_a_gpu_may_compile_kernels_and_leaves_no_batch_out() -> None:
    answers = iter([2000.0])
    model = Instant(gpu=0, ms=lambda batch, inputs: next(answers, 1.0))
    one = replace(subject("m", lambda: nullcontext(model)), gmacs_image=1.0)
    result = measured(one, plan=replace(SHORT, call_seconds=5), batches=[1, 32])
    assert [found.batch for found in result.rows[0].measurements] == [1, 32]


def test_what_others_do_is_watched() -> None:
    """A GPU computes on where other processes have the cores."""
    for gpu, expected in ((None, 50.0), (0, None)):
        one = subject("m", lambda gpu=gpu: nullcontext(Instant(gpu)))
        watch = lambda: lambda: Contention(1.0, 2, 1.0)  # noqa: E731
        (row,) = measured(one, watch=watch, batches=[1]).rows
        assert [found.others_percent for found in row.measurements] == [expected]
