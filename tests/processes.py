"""Real processes of `kdedge` and of scripts, without two seconds of imports each.

As a script: imports what they need, then forks a process for every request that comes as a line of
JSON on a socket, and answers there; all workers of a test run have one, which ends after the last.
What is forked runs `kdedge.cli.main.main`, or a script as `python SCRIPT` would, with its own
signals, exit code, standard streams and current folder.

It also forks for `Processes.python`, an executable that takes the place of `python -m kdedge` where
kdedge itself starts a process: it hands over its arguments, environment, folder and open files,
hands on its signals, and ends as the forked process ends.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

PYTHON = """\
#!{python} -IS
import json, os, signal, socket, sys

files = [int(name) for name in os.listdir("/proc/self/fd")]
files = [file for file in files if os.path.exists(f"/proc/self/fd/{{file}}")]
server = socket.socket(socket.AF_UNIX)
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda signum, _: server.send(bytes([signum])))
server.connect({socket!r})
given = sys.argv[sys.argv.index("kdedge") + 1 :]
request = dict(start=given, cwd=os.getcwd(), environment=dict(os.environ))
socket.send_fds(server, [json.dumps(request).encode() + b"\\n"], sorted(files))
code = int(server.makefile().readline())
if code < 0:
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class Processes:
    """The process that forks, as a test talks to it.

    Args:
        shared: a folder of all workers: the first of them starts it; programs are stored there
            that `traces.py` takes again.

    Attributes:
        python: an executable that is called as `python -m kdedge ARGUMENTS`.
    """

    def __init__(self, shared: Path) -> None:
        from kdedge.locks import lock_file

        place = shared / "processes"
        self.python = place / "python"
        with lock_file(shared / "processes.lock", wait_s=300):
            try:
                self._connect(place)
            except OSError:  # there is none, or it has ended with an earlier worker
                _start_server(place)
                self._connect(place)

    def _connect(self, place: Path) -> None:
        self._server = socket.socket(socket.AF_UNIX)
        self._answers = self._server.makefile()
        try:
            self._server.connect(str(place / "socket"))
            self.ask(poll=None)
        except OSError:
            self.close()
            raise

    def start(
        self, *arguments: str, cwd: Path, script: Path | None = None, clock: int = 1
    ) -> Process:
        """Starts `kdedge ARGUMENTS`, or a script with them, in a folder.

        The process takes this one's `sys.executable` for its interpreter. What it times seems to
        take `clock` times as long.
        """
        request = {"start": arguments, "script": script and str(script), "cwd": str(cwd)}
        return Process(self, {**request, "executable": sys.executable, "clock": clock})

    def ask(self, **request: Any) -> Any:
        """Sends a request and waits for its answer."""
        self._server.sendall(json.dumps(request).encode() + b"\n")
        if not (answer := self._answers.readline()):
            raise ConnectionError("the process that forks has ended")
        return json.loads(answer)

    def close(self) -> None:
        """Leaves it; it ends when all have."""
        self._answers.close()
        self._server.close()


def _start_server(place: Path) -> None:
    """Starts the process that forks, in a folder of its own."""
    place.mkdir(exist_ok=True)
    python, address = place / "python", place / "socket"
    python.write_text(PYTHON.format(python=sys.executable, socket=str(address)))
    python.chmod(0o755)
    address.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listening:  # before there is who answers
        listening.bind(str(address))
        listening.listen()
        listening.set_inheritable(True)
        ours = (__file__, str(listening.fileno()))
        command = [sys.executable, "-Werror", "-Wignore:The image decoding", *ours]
        # No seek is tried where what is forked has another stdin and stdout
        files = os.pipe()
        # No Popen, which asks that its process has ended: it may outlive this worker
        os.posix_spawn(
            sys.executable,
            [*command, str(place.parent)],
            {
                **os.environ,
                # As in an activated environment: `python` is this one's
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(Path(__file__).parents[1]),
                # With threads of its own, OpenMP would wait for them in what is forked
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
            },
            file_actions=[(os.POSIX_SPAWN_DUP2, files[target], target) for target in (0, 1)],
        )
    for file in files:
        os.close(file)


class Process:
    """One process."""

    def __init__(self, processes: Processes, request: dict[str, Any]) -> None:
        self._processes, self._code, cwd = processes, None, Path(request["cwd"])
        number = len(list(cwd.glob(".stdout-*")))
        self._out, self._err = cwd / f".stdout-{number}", cwd / f".stderr-{number}"
        self._err.touch()  # it may be killed before it opens them itself
        self._out.touch()
        self.pid: int = processes.ask(**request, out=str(self._out), err=str(self._err))

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
        while (code := self.poll()) is None:
            time.sleep(0.02)  # who asks all the time takes an eighth of a core
        return code

    def send(self, signum: signal.Signals) -> None:
        """Sends it a signal, where it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def wait_until(self, is_so: Callable[[], Any]) -> None:
        """Waits until something is so, or the process has ended."""
        while not is_so() and self.poll() is None:
            for _ in range(4):  # a look costs less than to ask
                time.sleep(0.005)
                if is_so():
                    return


def _fork(become: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        become()
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
    now = time.perf_counter
    time.perf_counter = lambda: request["clock"] * now()
    if request["script"] is not None:
        sys.argv = [request["script"], *request["start"]]
        runpy.run_path(request["script"], run_name="__main__")
        sys.exit()
    sys.executable = request["executable"]
    _run_kdedge(request["start"])


def _run_kdedge(arguments: list[str]) -> None:
    sys.argv = ["kdedge", *arguments]
    from kdedge.cli.main import main

    main()


def _become_started(request: dict[str, Any], files: list[int]) -> None:
    """Becomes what `Processes.python` was started as."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if set(paths) - set(sys.path):  # what is loaded has not seen what is installed there
        sys.path[:0] = paths
        for name in [name for name in sys.modules if name.partition(".")[0] == "kdedge"]:
            del sys.modules[name]
    for target, source in enumerate(files[:3]):
        os.dup2(source, target)
        os.close(source)
    _run_kdedge(request["start"])


def _poll(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def _serve() -> None:
    import torch
    import traces
    from tensorboard.summary.writer import record_writer  # noqa: F401

    import kdedge.cli.main
    import kdedge.paper.checkpoints.import_public
    import kdedge.runs.measure
    import kdedge.training.distill
    import kdedge.training.preflight  # noqa: F401
    from kdedge.clip.find import find_backbone
    from kdedge.clip.resolve import BackboneSpec

    # Reads the words of the tokenizer
    find_backbone(BackboneSpec("kdedge-demo-student", "builtin")).load()
    with contextlib.suppress(ImportError), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first export loads what each of them needs
        with contextlib.redirect_stdout(sys.stderr):
            export = traces.traced_once(Path(sys.argv[2]))
            export.traces_always(torch.nn.Linear(1, 1), (torch.ones(1, 1),), dynamo=True)
        torch.onnx.export = export

    gc.collect()
    gc.freeze()  # what is loaded is no garbage in any of the processes

    listening = socket.socket(fileno=int(sys.argv[1]))
    workers = {listening.accept()[0]}
    started: dict[socket.socket, int] = {}
    while workers:
        # Their ends are looked for now and then
        waiting = [listening, *workers, *started]
        for one in select.select(waiting, [], [], 0.01 if started else None)[0]:
            if one is listening:
                client, _ = listening.accept()
                request, files = _receive(client)
                if "environment" in request:
                    started[client] = _fork(partial(_become_started, request, files))
                    for file in files:
                        os.close(file)
                elif request:
                    workers.add(client)
                    client.sendall(_answer(request))
                else:
                    client.close()  # whoever stands for it was killed
            elif one in workers:
                request, _ = _receive(one)
                if request:
                    one.sendall(_answer(request))
                else:
                    workers.remove(one)
                    one.close()
            elif signums := one.recv(16):
                for signum in signums:
                    os.kill(started[one], signum)
            else:  # whoever stands for it was killed
                os.kill(started[one], signal.SIGKILL)
                os.waitpid(started.pop(one), 0)
                one.close()
        for client, pid in list(started.items()):
            code = _poll(pid)
            if code is not None:
                with contextlib.suppress(OSError):
                    client.send(f"{code}\n".encode())
                client.close()
                del started[client]
    listening.close()


def _answer(request: dict[str, Any]) -> bytes:
    if "start" in request:
        answer: int | None = _fork(lambda: _become(request))
    else:
        answer = None if request["poll"] is None else _poll(request["poll"])
    return json.dumps(answer).encode() + b"\n"


def _receive(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request with its open files; an empty one where the client has left."""
    data, files, _, _ = socket.recv_fds(client, 1 << 20, 16)
    while not data.endswith(b"\n"):
        more = client.recv(1 << 20)
        if not more:
            return {}, []
        data += more
    return json.loads(data), files


if __name__ == "__main__":
    _serve()
