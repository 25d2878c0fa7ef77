"""A logger for TensorRT, which stores errors for messages and prints nothing."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import TYPE_CHECKING, Any

log = logging.getLogger(__name__)


def make_log(module: ModuleType) -> Any:
    """Makes a logger whose `errors` are TensorRT's errors, each in one line.

    Args:
        module: `tensorrt` or `tensorrt_rtx`.
    """
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
