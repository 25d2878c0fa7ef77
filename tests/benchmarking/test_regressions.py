"""Comparing with an earlier table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kdedge.benchmarking.regressions import check_comparable, check_regressions
from kdedge.errors import GateError, RecipeError

Make = Callable[..., Any]


@pytest.fixture
def tables(make_row: Make, make_result: Make, make_measurement: Make) -> Callable[..., Any]:
    def make(*medians: float, **other: Any) -> Any:
        rows = [make_row(f"model {i}", make_measurement(1, ms)) for i, ms in enumerate(medians)]
        return make_result(*rows, **other)

    return make


def test_up_to_the_limit_is_no_regression(tables: Make) -> None:
    lines = check_regressions(tables(10.4, 5.0), tables(10.0, 9.0), max_percent=5, where="b.json")
    assert lines == [
        "model 0 (PyTorch 2.13.0), batch 1, on device: 10 -> 10.4 ms (+4.0 %)",
        "model 1 (PyTorch 2.13.0), batch 1, on device: 9 -> 5 ms (-44.4 %)",
    ]


def test_a_time_in_doubt_is_named_with_why(
    make_row: Make, make_result: Make, make_measurement: Make
) -> None:
    now = make_result(make_row("m", make_measurement(1, 30.0, others_percent=60.0)))
    old = make_result(make_row("m", make_measurement(1, 10.0)))
    with pytest.raises(GateError, match=r"now in doubt: other processes kept 60 % of the cores"):
        check_regressions(now, old, max_percent=5, where="b.json")


def test_above_it_ends_in_a_gate_that_names_what_is_slower(tables: Make) -> None:
    with pytest.raises(GateError, match=r"1 of 2 medians .* 5 % above b.json") as caught:
        check_regressions(tables(10.6, 5.0), tables(10.0, 5.0), max_percent=5, where="b.json")
    assert "model 0" in str(caught.value)
    assert "model 1" not in str(caught.value)


def test_a_newer_version_of_the_runtime_is_the_same_model(
    make_row: Make, make_result: Make, make_measurement: Make
) -> None:
    new = make_result(make_row("m", make_measurement(1, 9.0), runtime="PyTorch 3.0"))
    old = make_result(make_row("m", make_measurement(1, 9.0)))
    assert len(check_regressions(new, old, max_percent=0, where="b.json")) == 1


def test_a_time_is_held_against_one_that_began_alike(
    make_row: Make, make_result: Make, make_measurement: Make
) -> None:
    both = [make_measurement(1, 1.0), make_measurement(1, 30.0, inputs="image file")]
    table = make_result(make_row("m.onnx", *both))
    lines = check_regressions(table, table, max_percent=0, where="b.json")
    assert [line.partition(", batch 1, ")[2] for line in lines] == [
        "on device: 1 -> 1 ms (+0.0 %)",
        "image file: 30 -> 30 ms (+0.0 %)",
    ]


def test_another_machines_times_are_no_baseline(tables: Make) -> None:
    other = tables(1.0, device={"cpu": "Another CPU", "cpu_cores": 8})
    now = tables(1.0)
    with pytest.raises(RecipeError, match=r"another machine: Another CPU, 8 cores"):
        check_comparable(other, device=now.device, n_threads=2, where="b.json")
    with_gpu = {**now.device, "gpus": [{"name": "A GPU"}]}
    with pytest.raises(RecipeError, match=r"This one is A CPU, 2 cores, A GPU\."):
        check_comparable(now, device=with_gpu, n_threads=2, where="b.json")
    check_comparable(now, device=now.device, n_threads=2, where="b.json")


def test_times_in_another_power_mode_are_no_baseline(tables: Make) -> None:
    orin = {"cpu": "ARMv8", "cpu_cores": 6, "jetson": {"board": "Orin Nano", "power_mode": "15W"}}
    now = {**orin, "jetson": {"board": "Orin Nano", "power_mode": "MAXN"}}
    with pytest.raises(RecipeError, match=r"Orin Nano, 15W\.\n  This one is .*, Orin Nano, MAXN\."):
        check_comparable(tables(1.0, device=orin), device=now, n_threads=2, where="b.json")
    check_comparable(tables(1.0, device=orin), device=orin, n_threads=2, where="b.json")


def test_times_of_another_number_of_threads_are_no_baseline(tables: Make) -> None:
    now = tables(1.0)
    with pytest.raises(RecipeError, match=r"b.json was measured with threads 2"):
        check_comparable(now, device=now.device, n_threads=None, where="b.json")


def test_a_model_that_cannot_be_measured_any_more_does_not_pass(
    tables: Make, make_row: Make, make_result: Make, make_measurement: Make
) -> None:
    failed = make_result(
        make_row("model 0", make_measurement(1, 10.0)), make_row("model 1", problem="out of memory")
    )
    with pytest.raises(GateError, match=r"could not be measured now:\n  model 1: out of memory"):
        check_regressions(failed, tables(10.0, 5.0), max_percent=5, where="b.json")
    absent = tables(10.0, left_out={"model 1": "no GPU"})
    with pytest.raises(GateError, match=r"model 1: no GPU"):
        check_regressions(absent, tables(10.0, 5.0), max_percent=5, where="b.json")
    too_large = tables(10.0, 5.0, left_out={"model 1, batch 1": "it takes 8 a call"})
    with pytest.raises(GateError, match=r"now:\n  model 1, batch 1: it takes 8 a call"):
        check_regressions(too_large, tables(10.0, 5.0), max_percent=5, where="b.json")
    assert check_regressions(tables(10.0), tables(10.0, 5.0), max_percent=5, where="b.json")


def test_tables_with_nothing_in_common_are_an_error(
    tables: Make, make_row: Make, make_result: Make, make_measurement: Make
) -> None:
    other = make_result(make_row("something else", make_measurement()))
    with pytest.raises(RecipeError, match="has no model of this table"):
        check_regressions(tables(1.0), other, max_percent=5, where="b.json")
