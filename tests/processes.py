"""Real processes of `kdedge` and of scripts, without two seconds of imports each.

As a script: imports what they need, then forks a process for every request that comes as a line of
JSON on stdin, and answers on stdout. What is forked runs `kdedge.cli.main.main`, or a script as
`python SCRIPT` would, with its own signals, exit code, standard streams and current folder.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Processes:
    """The process that forks, as a test talks to it."""

    def __init__(self) -> None:
        package = str(Path(__file__).parents[1])
        self._server = subprocess.Popen(
            [sys.executable, "-W", "error", __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, *arguments: str, cwd: Path, script: Path | None = None) -> Process:
        """Starts `kdedge ARGUMENTS`, or a script with them, in a folder."""
        return Process(self, arguments, cwd, script)

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for its answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """Ends it."""
        self._server.communicate("")


class Process:
    """One process."""

    def __init__(
        self, processes: Processes, arguments: tuple[str, ...], cwd: Path, script: Path | None
    ) -> None:
        self._processes, self._code = processes, None
        number = len(list(cwd.glob(".stdout-*")))
        self._out, self._err = cwd / f".stdout-{number}", cwd / f".stderr-{number}"
        self._err.touch()  # it may be killed before it opens them itself
        self._out.touch()
        self.pid: int = processes.ask(
            start=list(arguments),
            script=None if script is None else str(script),
            cwd=str(cwd),
            out=str(self._out),
            err=str(self._err),
        )

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._err.read_text()

    def poll(self) -> int | None:
        """Its exit code, negative for a signal that killed it; None while it runs."""
        if self._code is None:
            self._code = self._processes.ask(poll=self.pid)
        return self._code

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        self.wait_until(lambda: self.poll() is not None)
        assert self._code is not None
        return self._code

    def send(self, signum: signal.Signals) -> None:
        """Sends it a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def wait_until(self, is_so: Callable[[], Any]) -> None:
        """Waits until something is so, or the process has ended."""
        while not is_so() and self.poll() is None:
            time.sleep(0.002)


def _fork(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        _become(request)
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
    except KeyboardInterrupt:  # before main could take it
        os._exit(130)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _become(request: dict[str, Any]) -> None:
    os.chdir(request["cwd"])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for target, source in (
        (0, os.open(os.devnull, os.O_RDONLY)),
        (1, os.open(request["out"], flags, 0o644)),
        (2, os.open(request["err"], flags, 0o644)),
    ):
        os.dup2(source, target)
    if request["script"] is not None:
        sys.argv = [request["script"], *request["start"]]
        runpy.run_path(request["script"], run_name="__main__")
        sys.exit()
    sys.argv = ["kdedge", *request["start"]]
    from kdedge.cli.main import main

    main()


def _poll(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _serve() -> None:
    import torchmetrics.functional.classification  # noqa: F401
    from tensorboard.summary.writer import record_writer  # noqa: F401

    import kdedge.runs.evaluate
    import kdedge.training.distill
    import kdedge.training.import_public
    import kdedge.training.preflight  # noqa: F401

    while line := os.read(0, 1 << 16).decode():
        request = json.loads(line)
        answer = _fork(request) if "start" in request else _poll(request["poll"])
        os.write(1, (json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    _serve()
