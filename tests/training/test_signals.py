"""Signal handlers come and go with their context."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, FunctionType

import pytest
import toy_run as toy

from kdedge.errors import Interrupted
from kdedge.training.loop.checkpoint import load_newest
from kdedge.training.loop.loggers import MetricsLog
from kdedge.training.loop.train import StopSignals


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_only_noted(signum: int) -> None:
    before = signal.getsignal(signum)
    with StopSignals() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signum) is before


def test_outside_the_main_thread_nothing_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with StopSignals() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]


@pytest.mark.parametrize("leaving", [MetricsLog.__exit__, StopSignals.__exit__])
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_after_the_last_step_is_not_lost(
    tmp_path: Path, leaving: FunctionType, signum: int, code: int
) -> None:
    def kill(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code is leaving.__code__:
            sys.setprofile(None)
            os.kill(os.getpid(), signum)

    run, method = toy.make_run(tmp_path), toy.ToyMethod()
    sys.setprofile(kill)
    try:
        with pytest.raises(Interrupted) as stopped:
            toy.train_toy(run, method)
    finally:
        sys.setprofile(None)
    assert stopped.value.exit_code == code
    state = load_newest(run.checkpoints)
    assert state.epoch == 4
    assert toy.train_toy(run, toy.ToyMethod()).steps == 3 * toy.N_STEPS
