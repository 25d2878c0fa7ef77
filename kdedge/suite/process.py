"""Runs `kdedge` processes, with a log, signals, and a lock that ends with the process."""

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

from kdedge.files import explain_os_error
from kdedge.lock import take_lock
from kdedge.training.loop.signals import StopSignals

_LAST_LINES = 12


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        code: its exit code; negative for the signal that killed it.
        stdout: its output.
        last_lines: the end of its stderr: the message of its error, if there is one.
    """

    code: int
    stdout: str
    last_lines: tuple[str, ...]


class KdedgeProcess:
    """A `kdedge` process of this Python interpreter.

    It has its own session, so a terminal's Ctrl-C does not reach it; only `send` does. It holds the
    lock file as long as it lives, even if it outlives this process.

    Args:
        arguments: arguments of `kdedge`.
        log_file: its stderr is appended to this file.
        lock_file: as above; waits while another process holds it.
        environment: variables that override this process's.

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
        # A file needs no reader while the process runs
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
        """Returns how it ended; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        with self._stdout as file:
            file.seek(0)
            stdout = file.read().decode(errors="replace")
        return Ended(code, stdout, _last_lines(self._log_file, self._log_start))

    def send(self, signum: int) -> None:
        """Sends it a signal if it still runs."""
        self._process.send_signal(signum)

    def wait(self) -> None:
        """Waits until it has ended."""
        self._process.wait()
        self._stdout.close()


class _Ended(KeyboardInterrupt):
    """A signal arrived that should end the current work."""


class CollectedSignals(StopSignals):
    """Context that collects SIGINT and SIGTERM, to forward them; they do not end this process.

    `received` is the first one.
    """

    def __init__(self) -> None:
        super().__init__()
        self._new: list[int] = []
        self._ends = False

    def take(self) -> list[int]:
        """Returns the signals since the last call, in order."""
        taken = self._new[:]
        del self._new[: len(taken)]  # one may arrive at any moment
        return taken

    def is_done(self, work: Callable[[], object]) -> bool:
        """Does work that the next signal ends; returns whether the work completed."""
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
    """Context with a lock that a process inherits; waits while another process holds it."""
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
    """The last error message, or the last lines if there is none."""
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
