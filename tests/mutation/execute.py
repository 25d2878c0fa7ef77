"""Runs tests on a changed tree, in a fork that has the big packages loaded already."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

BIG_PACKAGES = (
    "torch", "torchvision", "open_clip", "timm", "torchmetrics.classification", "webdataset",
    "tensorboard", "onnx", "onnxruntime", "onnxscript", "scipy.stats", "datasets", "hypothesis",
)  # fmt: skip
MEMORY_BYTES = 16 << 30
# Packages that are loaded before pytest begins are no news
OPTIONS = [
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "-q",
    "-n",
    "0",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "--hypothesis-seed=0",
]


def load_big_packages() -> None:
    """Loads what every fork then has; kdedge itself is loaded anew in each."""
    for name in BIG_PACKAGES:
        with suppress(ImportError):
            import_module(name)
    assert not any(name.split(".")[0] == "kdedge" for name in sys.modules)


def pytest_in(tree: Path, arguments: list[str], plugins: list[object] | None = None) -> int:
    """Runs pytest on `tree` in this process, which should be a fork."""
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    return int(pytest.main([*OPTIONS, *arguments], plugins=plugins))


def in_fork(work: Callable[[], int], *, log: Path, limit_s: float | None) -> int | None:
    """The exit code of `work`, run in a fork; None if it took too long and was killed."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
            output = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = math.inf if limit_s is None else time.monotonic() + limit_s
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.02)
        return None
    finally:
        _kill_group(pid)


def _kill_group(pid: int) -> None:
    """Ends a fork and what its tests started."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)
