"""A Ray cluster of two nodes on this machine, and `kdedge` commands that use it.

As a script: starts the nodes, then runs each command that comes as a line of JSON on stdin and
answers with its code and output. In a process of its own, as Ray warns and leaves files open.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_WORKER = b"ray::_Worker"


@dataclass(frozen=True)
class Done:
    """A command's exit code and output."""

    code: int
    out: str
    err: str


class Nodes:
    """The process that has the nodes, as a test talks to it."""

    def __init__(self) -> None:
        package = str(Path(__file__).parents[1])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": package,
                "RAY_worker_niceness": "0",  # else workers get no time beside other tests
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def kdedge(self, *arguments: str, address: str | None = None) -> Done:
        """Runs `kdedge ARGUMENTS` in the current folder, with the nodes or another address."""
        self._process.stdin.write(json.dumps([str(Path.cwd()), arguments, address]) + "\n")
        self._process.stdin.flush()
        return Done(*json.loads(self._process.stdout.readline()))

    @contextlib.contextmanager
    def killing_a_worker(self, when: Callable[[], object]) -> Iterator[list[int]]:
        """Context in which a worker is killed once something is so; gives the killed one."""
        with _signal_once(signal.SIGKILL, lambda: self._workers() if when() else []) as killed:
            yield killed

    @contextlib.contextmanager
    def interrupting(self, when: Callable[[], object]) -> Iterator[None]:
        """Context in which the command gets a Ctrl-C once something is so."""
        with _signal_once(signal.SIGINT, lambda: [self._process.pid] if when() else []):
            yield

    def _workers(self) -> list[int]:
        """Processes that do pieces: children of the nodes' own processes."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                if (entry / "cmdline").read_bytes().startswith(_WORKER):
                    raylet = _parent(int(entry.name))
                    if _parent(raylet) == self._process.pid:
                        found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Ends the nodes."""
        self._process.communicate("")


@contextlib.contextmanager
def _signal_once(signum: signal.Signals, whom: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Context in which the first process found gets a signal; gives that process."""
    told: list[int] = []
    is_over = threading.Event()

    def watch() -> None:
        while not told and not is_over.is_set():
            time.sleep(0.01)
            for pid in whom()[:1]:
                os.kill(pid, signum)
                told.append(pid)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield told
    finally:
        is_over.set()
        thread.join()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what Ray prints is no answer
    from ray.cluster_utils import Cluster

    from kdedge.cli.main import run

    node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    for line in sys.stdin:
        folder, arguments, address = json.loads(line)
        os.chdir(folder)
        os.environ["RAY_ADDRESS"] = address or cluster.address
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run(arguments)
        answers.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\n")
        answers.flush()
    cluster.shutdown()


if __name__ == "__main__":
    _serve()
