"""One `kdedge` process of its own: its log, its signals, and a lock that lives as long as it."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kdedge._files import explain_os_error
from kdedge.training.signals import StopSignals

log = logging.getLogger(__name__)

_LAST_LINES = 12


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative for the signal that killed it.
        stdout: what it printed.
        last_lines: what it said on stderr at the end: the message of its error, if it gave one.
        received: number of the signal that came to this process meanwhile, or None.
    """

    code: int
    stdout: str
    last_lines: tuple[str, ...]
    received: int | None


def run_kdedge(arguments: Sequence[str], *, log_file: Path, lock_file: Path) -> Ended:
    """Runs `kdedge ARGUMENTS` by this interpreter until it ends.

    SIGINT and SIGTERM are handed on to it, each once, so that it saves its state; it is in a
    session of its own, where a terminal's Ctrl-C does not reach it a second time. It holds the
    lock file as long as it lives: where a process that outlived this one still works, it is waited
    for.

    Args:
        arguments: of the command.
        log_file: where its stderr goes, after what is there already.
        lock_file: as above.

    Raises:
        ResourceError: one of the files may not be written.
    """
    command = [sys.executable, "-m", "kdedge", *arguments]
    signals = _HandedOn()
    with _held(lock_file) as lock, _appended(log_file) as stderr, signals:
        start = stderr.seek(0, os.SEEK_END)
        process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            pass_fds=(lock,),
            start_new_session=True,
        )
        signals.to(process)
        try:
            stdout, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.wait()
            raise
    lines = _last_lines(log_file, start)
    return Ended(process.returncode, stdout.decode(errors="replace"), lines, signals.received)


class _HandedOn(StopSignals):
    """Context in which SIGINT and SIGTERM go to a process; `received` is the first that came."""

    def __init__(self) -> None:
        super().__init__()
        self._process: subprocess.Popen[bytes] | None = None

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """Says which process; one that came before goes to it now."""
        self._process = process
        if self.received is not None:
            process.send_signal(self.received)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        if self._process is not None:
            self._process.send_signal(signum)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    """Context with a lock that a process inherits; waits for one that holds it already."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("  Its process outlived a suite that was killed: waiting for it to end.")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _appended(path: Path) -> Iterator[io.BufferedWriter]:
    try:
        file = path.open("ab")
    except OSError as error:
        raise explain_os_error(error, path) from error
    with file:
        yield file


def _last_lines(path: Path, start: int) -> tuple[str, ...]:
    """The last message of an error, or the last lines where there is none."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    starts = [
        number
        for number, line in enumerate(lines)
        if line.startswith("kdedge: ") and not line.startswith("kdedge: warning: ")
    ]
    return tuple(lines[starts[-1] if starts else 0 :][-_LAST_LINES:])
