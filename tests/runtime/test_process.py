"""How many threads compute and how they wait, on a system made of files."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from kdedge.runtime.process import (
    environment_threads,
    may_spin,
    set_up_threads,
    shared_threads,
    threads_with_workers,
    warn_if_busy,
)

NAMES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"),
    *("KDEDGE_CHOSEN", "LOCAL_WORLD_SIZE"),
)


@pytest.fixture(autouse=True)
def _start_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither torch nor any choice of the user's is here yet."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in NAMES:
        monkeypatch.setenv(name, "")  # restored afterwards
        monkeypatch.delenv(name)


def chosen() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES[:5] if name in os.environ}


def test_on_a_quiet_machine_every_core_computes_and_waits_in_a_short_spin(system: Any) -> None:
    set_up_threads(None)
    assert chosen() == {
        "OMP_NUM_THREADS": "2",
        "GOMP_SPINCOUNT": "10000",
        "KMP_BLOCKTIME": "1",
    }
    assert may_spin()


def test_on_a_busy_machine_threads_sleep_while_they_wait(system: Any, caplog: Any) -> None:
    system.busy_cores = 1.0
    set_up_threads(None)
    assert chosen() == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
    assert not may_spin()
    warn_if_busy()
    assert "that they leave: kdedge.compute_threads(1)." in caplog.text


def test_one_thread_waits_for_no_other_and_nothing_is_looked_at(system: Any) -> None:
    system.busy_cores = 2.0
    set_up_threads(1)
    assert system.slept == 0


@pytest.mark.parametrize(
    ("given", "more"),
    [
        ({"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "active"}, set()),
        ({"MKL_NUM_THREADS": "7", "KMP_BLOCKTIME": "200"}, set()),
        ({"GOMP_SPINCOUNT": "5"}, {"OMP_NUM_THREADS"}),
    ],
)
def test_the_users_own_environment_wins(
    system: Any, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], more: set[str]
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    set_up_threads(None)
    assert given.items() <= chosen().items()
    assert chosen().keys() == given.keys() | more


def test_an_option_outdoes_the_environment(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    set_up_threads(3)
    assert environment_threads() == 3
    assert chosen()["MKL_NUM_THREADS"] == "3"
    assert threads_with_workers(2) is None


def test_a_child_chooses_anew_what_its_parent_chose(system: Any) -> None:
    set_up_threads(None)
    system.busy_cores = 1.0
    set_up_threads(None)  # as another process with this environment
    assert chosen() == {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}


def test_the_processes_of_torchrun_share_the_cores(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # torchrun's own choice
    set_up_threads(None)
    assert environment_threads() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_up_threads(1)  # the user's
    assert environment_threads() == 1


def test_processes_at_the_same_time_share_the_cores_unless_the_user_has_said_otherwise(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_up_threads(None)
    shared = shared_threads(2)
    assert shared["OMP_NUM_THREADS"] == "1"
    assert shared_threads(10_000)["OMP_NUM_THREADS"] == "1"
    for name, value in shared.items():
        monkeypatch.setenv(name, value)
    set_up_threads(None)  # in one of them
    assert environment_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert shared_threads(2) == {}


@pytest.mark.parametrize(
    ("n_cores", "n_workers", "expected"), [(2, 1, 2), (16, 1, 15), (16, 9, 14)]
)
def test_loader_processes_get_at_most_an_eighth_of_the_cores(
    system: Any, monkeypatch: pytest.MonkeyPatch, n_cores: int, n_workers: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(n_cores)))
    set_up_threads(None)
    assert threads_with_workers(n_workers) == expected
