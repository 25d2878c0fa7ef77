"""`kdedge` processes: a log, signals, and a lock that lives as long as its process."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from kdedge._files import explain_os_error
from kdedge._lock import take_lock
from kdedge.training.loop.signals import StopSignals

_LAST_LINES = 12


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative for the signal that killed it.
        stdout: what it printed.
        last_lines: what it said on stderr at the end: the message of its error, if it gave one.
    """

    code: int
    stdout: str
    last_lines: tuple[str, ...]


class KdedgeProcess:
    """A `kdedge` process by this interpreter.

    It is in a session of its own, where a terminal's Ctrl-C does not reach it: signals come to it
    through `send` alone. It holds the lock file as long as it lives, even where it outlives this
    process.

    Args:
        arguments: of `kdedge`.
        log_file: where its stderr goes, after what is there already.
        lock_file: as above; waited for where another process holds it still.
        environment: variables over this process's.

    Raises:
        ResourceError: one of the files may not be written.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        log_file: Path,
        lock_file: Path,
        environment: Mapping[str, str],
    ) -> None:
        self._log_file = log_file
        # A file, which nobody has to read from while it runs
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115 - closed when it has ended
        with _held(lock_file) as lock, _appended(log_file) as stderr:
            self._log_start = stderr.seek(0, os.SEEK_END)
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, no shell
                [sys.executable, "-m", "kdedge", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=stderr,
                env={**os.environ, **environment},
                pass_fds=(lock,),
                start_new_session=True,
            )

    def poll(self) -> Ended | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        with self._stdout as file:
            file.seek(0)
            stdout = file.read().decode(errors="replace")
        return Ended(code, stdout, _last_lines(self._log_file, self._log_start))

    def send(self, signum: int) -> None:
        """Sends it a signal, where it still runs."""
        self._process.send_signal(signum)

    def wait(self) -> None:
        """Waits until it has ended."""
        self._process.wait()
        self._stdout.close()


class _Ended(KeyboardInterrupt):
    """A signal, where one is to end what is being done."""


class CollectedSignals(StopSignals):
    """Context in which SIGINT and SIGTERM are collected, to be handed on; none ends this process.

    `received` is the first that came.
    """

    def __init__(self) -> None:
        super().__init__()
        self._new: list[int] = []
        self._ends = False

    def take(self) -> list[int]:
        """Those that came since the last call, in their order."""
        taken = self._new[:]
        del self._new[: len(taken)]  # one may come at any moment
        return taken

    def is_done(self, work: Callable[[], object]) -> bool:
        """Does work that the next signal ends; whether it came to its own end."""
        self._ends = True
        try:
            work()
        except _Ended:
            return False
        finally:
            self._ends = False
        return True

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        self.received = self.received or signum
        self._new.append(signum)
        if self._ends:
            self._ends = False
            raise _Ended


@contextlib.contextmanager
def _held(path: Path) -> Iterator[int]:
    """Context with a lock that a process inherits; waits for who holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        take_lock(descriptor, path, fcntl.LOCK_EX)
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
