"""The logger for TensorRT, which keeps errors for messages and prints nothing."""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import TYPE_CHECKING, Any

log = logging.getLogger(__name__)


def open_log(module: ModuleType) -> Any:
    """The logger whose `errors` are TensorRT's errors from now on, each in one line.

    It is the same for all engines and builders of a process. TensorRT warns by a second logger,
    while it holds a lock: if Python collects garbage in that call, and frees another engine, that
    waits for the lock forever.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
    """
    found = _shared(module)
    found.errors.clear()
    return found


@functools.cache
def _shared(module: ModuleType) -> Any:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            levels = trt.ILogger.Severity
            if severity not in (levels.INTERNAL_ERROR, levels.ERROR, levels.WARNING):
                return
            text = " ".join(msg.split())
            log.debug("%s: %s", module.__name__, text)
            if severity != levels.WARNING:
                self.errors.append(text)

    return Log()
