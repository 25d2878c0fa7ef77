"""Signal handlers come and go with their context."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from kdedge.training.loop.signals import StopSignals


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
