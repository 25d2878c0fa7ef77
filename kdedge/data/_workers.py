"""The processes that decode images: how they start and end, and the message if one dies."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from types import TracebackType

import torch


def end_of_worker(text: str) -> str | None:
    """Explains torch's message about a worker that ended; None for any other message.

    An error in a worker arrives as an error of the same type whose text is the worker's traceback.
    """
    first, last = text.partition("\n")[0], text.rpartition("\n")[2]
    if first.startswith("DataLoader worker"):
        return f"a loader process died: {first.rstrip('.')}"
    if "</torch_" in last:  # the names of torch's shared memory
        return f"a loader process has no shared memory for a batch: {last}"
    return None


def start_worker(_: int) -> None:
    """Prepares a worker: only the main process handles Ctrl-C, and one thread is enough."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    sys.excepthook = _report_unless_hung_up
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _report_unless_hung_up(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Stays silent if the main process ended while it took a batch."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


def _die_with_parent() -> None:
    """Ends the worker when the main process has ended, for whatever reason.

    torch's own watchdog watches the parent process, which here is the fork server. It also ends
    gracefully, which can wait forever for a reader of the worker's last batches.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@functools.cache
def worker_context(module: str) -> multiprocessing.context.BaseContext:
    """Returns the context that starts workers: a fork server that has already loaded a module.

    Forking the training process would copy locks that its threads hold (torch, CUDA, TensorBoard),
    and hangs or warns. Spawning would load torch again in every worker of every epoch. The fork
    server loads it once (2 to 4 s a run), then starts a worker in milliseconds.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    # The server and its workers inherit the mask: none of them ever sees a Ctrl-C, not even in
    # the moments before start_worker runs. The resource tracker unblocks the signal when it
    # starts, so it has to run before.
    if threading.current_thread() is threading.main_thread():
        multiprocessing.resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            multiprocessing.forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context
