"""The server: binds the port, answers requests in a thread, and replaces changed artifacts."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import logging
import math
import resource
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from kdedge.artifacts.parity import (
    SMOKE_SET,
    decisive_parity,
    gate_error,
    parity_on_smoke_set,
    warn_of_failed_gates,
)
from kdedge.errors import InUseError, KdedgeError, RecipeError
from kdedge.inference.classify import Classifier
from kdedge.messages import first_line
from kdedge.serving.app import App
from kdedge.serving.connections import BACKLOG, Connection, WaitingConnections, WebServer
from kdedge.serving.limits import RequestLimits
from kdedge.serving.model import ServedModel

log = logging.getLogger(__name__)

_FolderState = tuple[object, ...]


_MORE_S = 5.0  # to send an answer, after the time limit of its request
_LAST_REQUESTS_S = 0.5  # in which answers still ask clients to close their connections
_HANGING_S = 3.0  # for a model to finish its batch, after the last answer
_SEARCH_PAUSE = 100  # between searches of the folder, in times that the last one took
_MAX_LOOKS = 60  # from one search to the next, as one may be slow by chance
_OTHER_FILES = 128  # open files that are no connections
_MIN_CONNECTIONS = 64
_MAX_WAITING = 1024  # connections without a request


class Server:
    """A running server. It ends when its context ends, or by `close`.

    Args:
        find: returns the artifact's folder, which may change, such as the newest one of a run.
        load: loads an artifact.
        batch: largest batch into which requests are joined; None for the artifact's largest batch.
        host: the address to listen on.
        port: the port; 0 for a free one.
        limits: limits of requests.
        look_every_s: interval at which the artifact is checked for changes, in s.
        headers_s: seconds from a connection, or from its last answer, to a request's headers.

    Attributes:
        url: the server's address, such as `http://127.0.0.1:8000`.
        name: the model's name in the paths of the Open Inference Protocol.
    """

    def __init__(
        self,
        find: Callable[[], Path],
        load: Callable[[Path], Classifier],
        *,
        batch: int | None = None,
        host: str,
        port: int,
        limits: RequestLimits,
        look_every_s: float = 1.0,
        headers_s: float = 20.0,
    ) -> None:
        """Binds the port, loads the model and begins to answer.

        Raises:
            InUseError: another program uses the port.
            RecipeError: this machine has no such address, or this user may not use the port.
            DataError: the artifact is damaged.
            SetupError: this machine cannot run it.
        """
        self._find = find
        self._load = load
        self._batch = batch
        self._look_every_s = look_every_s
        self._folder = Path()
        self._next_search_s = 0.0
        self._socket = _listen(host, port)
        with contextlib.ExitStack() as on_error:
            on_error.callback(self._socket.close)
            state = self._folder_state()  # later changes are loaded again
            loaded = load(self._found_folder())
            on_error.callback(loaded.close)
            warn_of_failed_gates(loaded.artifact, loaded.file, loaded.backend)
            model = ServedModel(loaded, batch)
            model.warm_up()
            self.name = model.artifact.model_name
            self._app = App(self.name, model, limits)
            self._limits = limits
            n_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            n_connections = max(n_files - _OTHER_FILES, _MIN_CONNECTIONS)
            n_waiting = min(n_connections // 4, _MAX_WAITING)
            waiting = WaitingConnections(n_waiting, headers_s)
            config = uvicorn.Config(
                self._app.asgi,
                http=partial(Connection, waiting),  # h11 limits headers to 64 KiB
                loop="asyncio",
                limit_concurrency=n_connections - n_waiting,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",  # the application logs its errors itself
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=1,
                timeout_keep_alive=math.ceil(headers_s),
                timeout_graceful_shutdown=int(limits.timeout + min(_MORE_S, limits.timeout)) + 1,
            )
            self._uvicorn = WebServer(config)
            on_error.pop_all()
        address, number = self._socket.getsockname()[:2]
        self.url = (
            f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()
        self._ends = threading.Event()
        self._reloader = threading.Thread(
            target=contextvars.copy_context().run,  # its messages name flags, too
            args=(self._reload, state),
            name="takeover",
            daemon=True,
        )
        self._reloader.start()

    @property
    def model(self) -> ServedModel:
        """The model for new requests."""
        return self._app.model

    def _run(self) -> None:
        try:
            self._uvicorn.run(sockets=[self._socket])
        except BaseException as error:  # `wait` raises it again
            self._error = error

    def _reload(self, state: _FolderState) -> None:
        """The thread that replaces the model whenever the artifact has changed.

        A changed artifact is loaded next to the old one once its files are the same in two checks.
        It is refused if it is damaged or differs from its own smoke set; the server then keeps the
        old one.

        Args:
            state: the folder's state before the model was loaded.
        """
        outcomes = self._app.metrics.artifacts
        loaded = state
        while not self._ends.wait(self._look_every_s):
            before = state
            state = self._folder_state()
            if state == loaded or state != before:  # somebody may still be writing
                continue
            loaded = state
            try:
                path = self._found_folder()
                model = self._load_checked(path)
            except Exception as error:  # after any error, the old model is kept
                reason = str(error) or type(error).__name__
                log.error(  # noqa: TRY400 - the server's operator needs no traceback
                    f"The new artifact is refused, and the old one is served on.\n  {reason}"
                )
                outcomes.labels("refused").inc()
                continue
            if self._ends.is_set():  # `close` did not wait for this thread
                return
            self._app.model = model
            outcomes.labels("taken").inc()
            log.info(f"Serving the new artifact {path}: {model.describe()}.")

    def _found_folder(self) -> Path:
        """The artifact's folder; among many runs it is searched for 1 % of the time."""
        began = time.monotonic()
        if began >= self._next_search_s:
            self._folder = self._find()
            pause_s = _SEARCH_PAUSE * (time.monotonic() - began)
            self._next_search_s = began + min(pause_s, _MAX_LOOKS * self._look_every_s)
        return self._folder

    def _folder_state(self) -> _FolderState:
        """A value that changes with the artifact's folder and with each of its files."""
        try:
            folder = self._found_folder().resolve()
            state: list[object] = [folder]
            for path in sorted(folder.iterdir()):
                status = path.stat()
                state.append((path.name, status.st_ino, status.st_size, status.st_mtime_ns))
        except (OSError, KdedgeError):
            return ()  # one state for every reason, so that a missing folder is refused only once
        return tuple(state)

    def _load_checked(self, path: Path) -> ServedModel:
        """Loads an artifact and compares it with its smoke set.

        Raises:
            DataError: the artifact is damaged.
            GateError: the artifact misses the gates of its export.
            SetupError: this machine cannot run it.
        """
        classifier = self._load(path)
        artifact = classifier.artifact
        file = classifier.file
        model = ServedModel(classifier, self._batch)
        with contextlib.ExitStack() as on_error:
            on_error.callback(model.close)
            if SMOKE_SET not in artifact.others:
                log.warning(f"{artifact.path} has no smoke set: its predictions were not compared.")
            else:
                result = parity_on_smoke_set(artifact, classifier.backend)
                error = gate_error(file, decisive_parity(file, result), artifact.gates)
                if error is not None and file.gate != "missed":  # `missed`: accepted at export
                    raise error
            model.warm_up()
            on_error.pop_all()
        return model

    def wait(self) -> None:
        """Waits until the server ends by itself, which happens only by an error.

        Raises:
            Exception: the error that ended the server.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Answers the requests in progress, refuses new ones, and frees the model.

        An exception meanwhile, such as a second Ctrl-C, ends the server immediately. If the model
        hangs, this returns some seconds after the time limit of its last request; the model is
        freed if its batch ever ends.
        """
        try:
            self._app.is_draining = True
            time.sleep(_LAST_REQUESTS_S)
            self._uvicorn.should_exit = True
            self._thread.join()
        except BaseException:
            self._uvicorn.should_exit = self._uvicorn.force_exit = True
            raise
        patience_s = min(_HANGING_S, self._limits.timeout)
        self._ends.set()
        self._reloader.join(patience_s)  # a longer load is not waited for
        if self._app.close(patience_s=patience_s):
            self.model.close()
        else:
            log.error(
                f"The model still runs a batch, {patience_s:g} seconds after its last request was"
                " given up: it hangs.\n"
                "  The server ends without it. Look at the device and its driver."
            )
            threading.Thread(target=self.model.close, name="closing", daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections; they are answered once the model is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    is_dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        socket.getaddrinfo(host, port)  # refuses an empty name, with which a socket would listen
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=is_dual
        )
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise InUseError(
                f"Port {port} of {host} is in use by another program.\n"
                "  Stop that program, or choose another port (0 for a free one)."
            ) from error
        raise RecipeError(
            f"Port {port} of {host!r} cannot be used: {first_line(error).lower()}.\n"
            "  Choose a port above 1023, and 127.0.0.1 for this machine alone, 0.0.0.0 for the"
            " network, or another address of this machine."
        ) from error
