"""What a bench does where nothing it was asked for runs here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from kdedge.bench.run import run_bench
from kdedge.bench.subject import Subject
from kdedge.bench.timing import TimingPlan
from kdedge.runtime.backends._protocol import NotHere


def absent(message: str) -> Callable[[], AbstractContextManager[Any]]:
    def load() -> AbstractContextManager[Any]:
        raise NotHere(message)

    return load


def test_nothing_that_runs_here_is_an_error_and_no_empty_table() -> None:
    subjects = [
        Subject(
            source="tiny",
            model=f"{name}.engine",
            protocol="cached",
            precision="fp16",
            n_parameters=None,
            n_bytes=1,
            gmacs_image=None,
            gmacs_call=0.0,
            accuracy=None,
            gate=None,
            load=absent(f"{name}.engine was built for another device."),
        )
        for name in ("a", "b")
    ]
    with pytest.raises(NotHere, match=r"a\.engine was built for another device") as caught:
        run_bench(
            subjects, plan=TimingPlan(), batches=[1], n_threads=None, left_out={}, command="bench"
        )
    assert caught.value.exit_code == 4
