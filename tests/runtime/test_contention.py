"""What other processes take, on a system made of files."""

from __future__ import annotations

from typing import Any

import pytest

from kdedge.runtime.machine import Contention, all_of, watch_contention


def test_others_have_what_is_busy_or_stolen_on_the_cores_of_this_process(system: Any) -> None:
    system.busy_cores = 0.5
    since = watch_contention()
    system.sleep(4.0)
    found = since()
    assert (found.seconds, found.n_cores) == (4.0, 2)
    assert found.others_cores == pytest.approx(0.5)
    assert found.others_percent == pytest.approx(25.0)


def test_what_this_process_has_computed_is_not_the_others(
    system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    system.busy_cores = 1.5
    monkeypatch.setattr("time.process_time", lambda: system.slept)
    since = watch_contention()
    system.sleep(2.0)
    assert since().others_cores == pytest.approx(0.5)


def test_a_system_that_does_not_count_is_unknown(system: Any) -> None:
    (system.root / "proc/stat").unlink()
    found = watch_contention()()
    assert (found.others_s, found.others_percent) == (None, None)


def test_several_times_count_by_their_length() -> None:
    whole = all_of([Contention(1.0, 2, 1.0), Contention(3.0, 2, -0.2)])
    assert whole.others_cores == pytest.approx(0.2)
    assert all_of([Contention(1.0, 2, None), Contention(1.0, 2, 1.0)]).others_s is None
