"""What a call changes of its process: compute threads, freed memory, torch's settings.

Threads and how they wait are set before libraries are loaded.

OpenMP's threads wait for each other at the end of every parallel loop, by default by spinning for a
long time. If another process is busy, spinning keeps the awaited thread from its core, and small
steps take twelve times as long. Threads that sleep at once are faster then; but on a quiet machine
waking them makes small steps twice as slow. So threads sleep at once on a busy machine and spin for
a short time on a quiet one.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kdedge.errors import check_at_least
from kdedge.messages import option
from kdedge.runtime.machine import allowed_cores, physical_cores, watch_contention
from kdedge.torchrun import local_world_size

log = logging.getLogger(__name__)

_NUMBER = "OMP_NUM_THREADS"
_NUMBERS = (_NUMBER, "MKL_NUM_THREADS")
_POLICY = "OMP_WAIT_POLICY"
# Spin count for GNU's OpenMP, and milliseconds for LLVM's and Intel's
_SHORT_SPIN = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
# Names of the variables that kdedge set: its child processes choose these anew
_CHOSEN = "KDEDGE_CHOSEN"
_LOOK_S = 0.05

# Parameters of mallopt, from malloc.h of glibc
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = 2**31 - 1
# glibc no longer adapts the last two once one is set: the values that it adapts them to
_DEFAULTS = {_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: 32 * 2**20, _M_TRIM_THRESHOLD: 64 * 2**20}


class _Process:
    """What calls that overlap, in threads or one in another, share."""

    lock = threading.Lock()
    n_calls = 0
    libc: ctypes.CDLL | None = None  # keeps freed memory
    gpu: int | None = None
    busy_cores: float | None = None  # until the warning
    is_tf32_allowed: bool | None = None


def set_up_threads(n_threads: int | None) -> None:
    """Sets the number of compute threads and how they wait, unless the environment does.

    Once torch is loaded, only a given `n_threads` has an effect.

    Args:
        n_threads: the user's choice, which overrides the environment; None for this process's
            share of the physical cores.

    Raises:
        RecipeError: `n_threads` is below 1.
    """
    check_at_least(1, threads=n_threads)
    torch = sys.modules.get("torch")
    if torch is None:
        for name in _chosen():
            os.environ.pop(name, None)
    if n_threads is not None:
        os.environ.update(dict.fromkeys(_NUMBERS, str(n_threads)))
        if torch is not None:
            torch.set_num_threads(n_threads)
    if torch is not None:
        return
    chosen = {} if are_threads_given() else {_NUMBER: str(_share())}
    os.environ.update(chosen)
    _Process.busy_cores = _busy_cores(environment_threads() or allowed_cores())
    if not any(name in os.environ for name in (_POLICY, *_SHORT_SPIN)):
        chosen |= _SHORT_SPIN if _Process.busy_cores is None else {_POLICY: "PASSIVE"}
        os.environ.update(chosen)
    os.environ[_CHOSEN] = " ".join(chosen)


def warn_if_busy() -> None:
    """Warns before long work, once, if other processes kept cores busy in `set_up_threads`."""
    busy_cores = _Process.busy_cores
    _Process.busy_cores = None
    if busy_cores is not None:
        n_cores = allowed_cores()
        warning = f"Other processes keep {busy_cores:.1f} of {n_cores} cores busy: this will take"
        warning += " longer."
        n_free = n_cores - round(busy_cores)
        if n_free > 0:
            call = option(f"--threads {n_free}", f"kdedge.compute_threads({n_free})")
            warning += f"\n  To compute on the cores that they leave: {call}."
        log.warning(warning)


@contextmanager
def compute_threads(n_threads: int | None) -> Iterator[None]:
    """Context in which calls compute with a number of threads; later calls have the one before.

    Args:
        n_threads: CPU threads; None for OMP_NUM_THREADS, or one per physical core.

    Raises:
        RecipeError: `n_threads` is below 1.

    Examples:
        >>> with kdedge.compute_threads(2):
        ...     kdedge.distill("line3.yaml")
    """
    names = (*_NUMBERS, _POLICY, *_SHORT_SPIN, _CHOSEN)
    before = {name: os.environ.get(name) for name in names}
    torch = sys.modules.get("torch")
    n_before = None if torch is None else torch.get_num_threads()
    try:
        set_up_threads(n_threads)
        yield
    finally:
        _Process.busy_cores = None
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        torch = sys.modules.get("torch")
        if n_threads is not None and torch is not None:
            torch.set_num_threads(n_before or environment_threads() or _share())


def keep_freed_memory() -> None:
    """Keeps freed CPU memory for the next tensors of the call, if the C library is glibc.

    glibc returns large blocks to the kernel, which clears them page by page when they are allocated
    again: on a virtual machine that takes half of an EfficientNet's time, and as long as tensors
    are small it does not lower the peak.
    """
    with _Process.lock:
        libc = ctypes.CDLL(None)
        if _Process.n_calls and _Process.libc is None and hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
            _Process.libc = libc


@contextmanager
def torch_as_before() -> Iterator[None]:
    """Context of a call: after the last one torch's settings and freed memory are as before.

    The settings are the current GPU, if there was one, and TF32.
    """
    with _Process.lock:
        if _Process.n_calls == 0:
            _note_settings()
        _Process.n_calls += 1
    try:
        yield
    finally:
        with _Process.lock:
            _Process.n_calls -= 1
            if _Process.n_calls == 0:
                _restore_settings()


def _note_settings() -> None:
    torch = sys.modules.get("torch")
    _Process.gpu = None
    _Process.is_tf32_allowed = True
    if torch is not None:
        if torch.cuda.is_initialized():
            _Process.gpu = torch.cuda.current_device()
        try:
            _Process.is_tf32_allowed = torch.backends.cudnn.allow_tf32
        except RuntimeError:  # set by torch's newer settings, which this one cannot express
            _Process.is_tf32_allowed = None


def _restore_settings() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and _Process.is_tf32_allowed is not None:
        torch.backends.cudnn.allow_tf32 = _Process.is_tf32_allowed
    if torch is not None and _Process.gpu is not None:
        torch.cuda.set_device(_Process.gpu)
    if _Process.libc is not None:
        for option, value in _DEFAULTS.items():
            _Process.libc.mallopt(option, value)
        _Process.libc.malloc_trim(0)
        _Process.libc = None


def _chosen() -> set[str]:
    return set(os.environ.get(_CHOSEN, "").split())


def are_threads_given() -> bool:
    """Whether the user has set the number of threads, by a variable or an option."""
    given = {name for name in _NUMBERS if name in os.environ} - _chosen()
    # torchrun itself sets one thread
    is_of_torchrun = local_world_size() > 1 and os.environ.get(_NUMBER) == "1"
    return bool(given) and not (given == {_NUMBER} and is_of_torchrun)


def _share() -> int:
    return max(1, physical_cores() // local_world_size())


def _busy_cores(n_threads: int) -> float | None:
    """Cores that others keep busy, if too few are left; a single thread never waits."""
    if n_threads == 1:
        return None
    since = watch_contention()
    time.sleep(_LOOK_S)
    others = since().others_cores
    n_cores = allowed_cores()
    noise = max(0.5, n_cores / 20)
    if others is None or others <= max(noise, n_cores - n_threads):
        return None
    return others


def environment_threads() -> int | None:
    """The number of threads in the environment; None if it is not set."""
    for name in _NUMBERS:
        outermost, _, _ = os.environ.get(name, "").partition(",")  # of nested parallel regions
        if outermost.isdecimal() and int(outermost) > 0:
            return int(outermost)
    return None


def given_threads() -> int | None:
    """The number of threads that the user has set, by a variable or an option; None if not set."""
    return environment_threads() if are_threads_given() else None


def may_spin() -> bool:
    """Whether threads may spin while they wait."""
    return os.environ.get(_POLICY, "").strip().lower() != "passive"


def threads_with_workers(n_workers: int) -> int | None:
    """Number of threads that leaves cores to data workers; None if kdedge did not set it.

    If the CPU computes, workers decode only a small part of the time. So at most an eighth of the
    cores is left to them, and none if there are fewer than eight cores.

    Args:
        n_workers: data workers of this process.
    """
    if _NUMBER not in _chosen():
        return None
    n_threads = int(os.environ[_NUMBER])
    return n_threads - min(n_workers, n_threads // 8)


def shared_threads(n_processes: int) -> dict[str, str]:
    """Environment variables that give each process its share of the cores.

    If the user has set a number of threads, each process uses that number.

    Args:
        n_processes: number of processes that run at the same time.
    """
    if are_threads_given():
        return {}
    return {
        _NUMBER: str(max(1, _share() // n_processes)),
        _CHOSEN: " ".join(_chosen() - {_NUMBER}),
    }
