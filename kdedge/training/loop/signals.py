"""Stops a run on SIGINT (Ctrl-C) or SIGTERM, so that its state can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Context manager: the first SIGINT or SIGTERM only sets `received`, the second one kills.

    After the first signal, the operating system's default handling is restored. So the second one
    ends the process even during a long computation. Outside the main thread, where Python allows
    no signal handlers, the context manager does nothing.

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
            # None: a handler that was not set from Python and cannot be restored
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
