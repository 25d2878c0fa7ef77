"""Runs builds that Ctrl-C can cancel, and that log from time to time that they still run."""

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
    """Switch that cancels a build in another thread.

    Attributes:
        monitor: TensorRT's progress monitor, which reads the switch.
    """

    def __init__(self) -> None:
        self.monitor: Any = None
        self.is_set = False


def make_cancel(module: ModuleType) -> Cancel:
    """Makes the switch, with its monitor."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = module
    cancel = Cancel()

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
    """Runs a build in another thread, so that Ctrl-C works.

    Signals interrupt the main thread only. In the building thread, a signal would interrupt
    TensorRT's call of our logger, and TensorRT ignores exceptions of its callbacks.

    Args:
        work: runs the build.
        cancel: switch that Ctrl-C sets.
        what: name of the build, for the log.
        report_every_s: seconds between log lines during the build.
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
    """Runs a build and frees its builder at once if it fails.

    An exception's traceback keeps the builder alive. The garbage collector may then free it inside
    the next builder's constructor, and wait forever for the lock that this constructor holds.
    """
    try:
        return work()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        raise
