"""Builds that Ctrl-C can end, and that say from time to time that they go on."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from types import ModuleType
from typing import TYPE_CHECKING, Any

log = logging.getLogger(__name__)


class Cancel:
    """Tells a build that runs in another thread to end.

    Attributes:
        monitor: TensorRT's progress monitor that obeys it; None where the package has none.
    """

    def __init__(self) -> None:
        self.monitor: Any = None
        self.is_set = False


def make_cancel(module: ModuleType) -> Cancel:
    """Gives the switch, with a monitor where the package has monitors (10 and later)."""
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


def in_a_thread(
    work: Callable[[], tuple[bytes, dict[str, Any]]],
    cancel: Cancel,
    what: str,
    *,
    report_every_s: float = 30.0,
) -> tuple[bytes, dict[str, Any]]:
    """Runs a build in another thread, so that Ctrl-C is heard.

    Signals interrupt the main thread only. In the thread that builds, a signal would interrupt
    TensorRT's call of our logger, and TensorRT swallows what its callbacks raise.

    Args:
        work: builds.
        cancel: is set at Ctrl-C.
        what: what is built, for the log.
        report_every_s: how often the log says that the build goes on.
    """
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        try:
            future = pool.submit(_release, work)
            while not wait([future], timeout=report_every_s).done:
                log.info("%s: %.0f s so far.", what, time.monotonic() - began)
        except KeyboardInterrupt:
            cancel.is_set = True
            raise
        return future.result()


def _release(work: Callable[[], tuple[bytes, dict[str, Any]]]) -> tuple[bytes, dict[str, Any]]:
    """Runs a build and frees its builder at once where it fails.

    An exception keeps the frames that it came through, and so the builder. The garbage collector
    may free the builder within the next builder's constructor, and then waits forever for the lock
    that this constructor holds.
    """
    try:
        return work()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
