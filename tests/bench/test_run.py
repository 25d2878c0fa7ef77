"""What a bench says of models that run here, on a GPU or not, and where none does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytest

from kdedge.bench.power import SampledPower
from kdedge.bench.run import run_bench
from kdedge.bench.subject import Loaded, Subject
from kdedge.bench.timing import Call, Power, TimingPlan
from kdedge.runtime.backends._protocol import NotHere
from kdedge.speed_results import Inputs

SHORT = TimingPlan(seconds=0.01, n_calls=3, n_rounds=1)


def subject(name: str, load: Callable[[], AbstractContextManager[Loaded]]) -> Subject:
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
    """A model that needs no time, on the device that it says."""

    is_gpu: bool
    runtime: str = "none"
    held_bytes: int = 0
    batches: tuple[int, int | None] = (1, None)
    inputs: tuple[Inputs, ...] = ("on device",)

    def call(self, batch: int, inputs: Inputs) -> Call:
        del batch, inputs
        return lambda: 1.0


def absent(message: str) -> Callable[[], AbstractContextManager[Any]]:
    def load() -> AbstractContextManager[Any]:
        raise NotHere(message)

    return load


def test_nothing_that_runs_here_is_an_error_and_no_empty_table() -> None:
    subjects = [
        subject(name, absent(f"{name} was built for another device."))
        for name in ("a.engine", "b.engine")
    ]
    with pytest.raises(NotHere, match=r"a\.engine was built for another device") as caught:
        run_bench(
            subjects, plan=TimingPlan(), batches=[1], n_threads=None, left_out={}, command="bench"
        )
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("devices", "on_cpu"), [(("GPU",), None), (("CPU", "GPU"), 200.0)], ids=["gpu's", "module's"]
)
def test_a_model_on_the_cpu_is_not_given_the_watts_of_a_gpu(
    devices: tuple[str, ...], on_cpu: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    power: Power = SampledPower(lambda: 200.0, devices)
    monkeypatch.setattr("kdedge.bench.run.find_power", lambda: power)
    monkeypatch.setattr("kdedge.bench.run.measure_peaks", lambda **_: {})
    subjects = [
        subject(name, lambda is_gpu=is_gpu: nullcontext(Instant(is_gpu)))
        for name, is_gpu in (("cpu", False), ("gpu", True))
    ]
    result = run_bench(
        subjects, plan=SHORT, batches=[1], n_threads=None, left_out={}, command="bench"
    )
    watts = {row.model: [found.watts for found in row.measurements] for row in result.rows}
    assert watts == {"cpu": [on_cpu], "gpu": [200.0]}
