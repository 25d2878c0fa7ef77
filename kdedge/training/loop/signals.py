"""Ending a run on Ctrl-C or a polite kill, with its state saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Context in which the first SIGINT or SIGTERM only sets `received`, and a second one kills.

    After the first, the operating system's own handling is in place, so the second ends the
    process even while it is deep in a long computation. Outside the main thread, where Python
    allows no handlers, the context does nothing.

    Attributes:
        received: number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                self._before[signum] = signal.signal(signum, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for signum, handler in self._before.items():
            # None stands for a handler that was not set from Python and cannot be put back
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
