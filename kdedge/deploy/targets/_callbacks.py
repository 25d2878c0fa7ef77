"""What TensorRT calls back while it builds, and builds that Ctrl-C can end."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType
from typing import TYPE_CHECKING, Any

log = logging.getLogger(__name__)

_SAY_EVERY_S = 30.0


class Cancel:
    """Tells a build that runs in another thread to end."""

    def __init__(self) -> None:
        self.monitor: Any = None
        self.is_set = False


def make_cancel(module: ModuleType) -> Cancel:
    """Gives the switch, with the monitor that obeys it where the package has monitors."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    cancel = Cancel()
    if not hasattr(trt, "IProgressMonitor"):
        return cancel

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            pass

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not cancel.is_set

        def phase_finish(self, phase_name: str) -> None:
            pass

    cancel.monitor = Monitor()
    return cancel


def make_log(module: ModuleType) -> Any:
    """Gives a TensorRT logger that keeps errors and leaves the terminal alone."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module

    class Log(trt.ILogger):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INFO, trt.ILogger.VERBOSE):
                return
            log.debug("%s: %s", module.__name__, msg)
            if severity != trt.ILogger.WARNING:
                self.errors.append(msg.strip())

    return Log()


def in_a_thread(
    work: Callable[[], tuple[bytes, dict[str, Any]]], cancel: Cancel, what: str
) -> tuple[bytes, dict[str, Any]]:
    """Runs a build so that Ctrl-C is heard.

    Signals interrupt the main thread only. In the thread that builds, TensorRT's call of our
    logger would be interrupted, and TensorRT swallows what its callbacks raise.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(_release, work)
            while not wait([future], timeout=_SAY_EVERY_S).done:
                log.info("%s: %.0f s so far.", what, time.monotonic() - began)
        except KeyboardInterrupt:
            cancel.is_set = True
            raise
        return future.result()


def _release(work: Callable[[], tuple[bytes, dict[str, Any]]]) -> tuple[bytes, dict[str, Any]]:
    """Runs a build and lets go of its builder at once where it fails.

    An exception keeps the frames that it came through, and so the builder. Collected at some later
    time, as in a logger's call out of the next builder's constructor, it waits for the lock that
    this constructor holds, in the same thread and for ever.
    """
    try:
        return work()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
