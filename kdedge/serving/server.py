"""The server: a thread with an event loop, from the port that it takes to its last answer."""

from __future__ import annotations

import errno
import logging
import resource
import socket
import threading
import time
from functools import partial
from types import TracebackType
from typing import Any

import uvicorn

from kdedge.deploy.parity import warn_of_misses
from kdedge.deploy.servers import model_name
from kdedge.errors import InUseError, RecipeError
from kdedge.serving.app import App
from kdedge.serving.connection import ConnectionLimits, LimitedConnection
from kdedge.serving.limits import Limits
from kdedge.serving.model import CurrentModel, ServedModel
from kdedge.serving.takeover import ArtifactSource, Takeover

_LOG = logging.getLogger(__name__)

_BACKLOG = 2048
_HEADERS_S = 10.0
_KEEP_ALIVE_S = 30
_MORE_S = 5.0  # for an answer to go out, after the time of its request
_LAST_REQUESTS_S = 0.5  # clients with open connections are told to close them
_HANGING_S = 3.0  # for a model to end what it runs, after the last answer
_OTHER_FILES = 128  # open files that are no connections


class Server:
    """A running server. As a context manager it ends with it; `close` does the same.

    Attributes:
        url: its address, such as `http://127.0.0.1:8000`.
        name: the model's name in the paths of the Open Inference Protocol.
        model: the model that it began with.
    """

    def __init__(
        self,
        source: ArtifactSource,
        *,
        host: str,
        port: int,
        limits: Limits,
        look_every_s: float = 1.0,
    ) -> None:
        """Takes the port, loads the model and begins to answer.

        Raises:
            InUseError: another program has the port.
            RecipeError: this machine has no such address, or this user may not use the port.
            DataError: the artifact is damaged.
            SetupError: this machine cannot run it.
        """
        self._socket = _take(host, port)
        try:
            loaded = source.load(source.find())
            warn_of_misses(loaded.artifact, loaded.file, loaded.backend)
            self.model = ServedModel(loaded, source.batch)
            self.model.warm_up()
            _listen(self._socket)
        except BaseException:
            self._socket.close()
            raise
        address, number = self._socket.getsockname()[:2]
        self.url = (
            f"http://[{address}]:{number}" if ":" in address else f"http://{address}:{number}"
        )
        self.name = model_name(self.model.artifact.name)
        self._current, self._limits = CurrentModel(self.model), limits
        self._app = App(self.name, self._current, limits)
        self._uvicorn = uvicorn.Server(self._config())
        self._error: BaseException | None = None
        self._takeover = Takeover(
            source, self._current, self._app.metrics.count_artifact, every_s=look_every_s
        )
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self._thread.start()

    def _config(self) -> Any:
        request_s = self._limits.timeout + min(_MORE_S, self._limits.timeout)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
        limits = ConnectionLimits(min(_HEADERS_S, self._limits.timeout), request_s, max(most, 1))
        return uvicorn.Config(
            self._app.asgi,
            http=partial(LimitedConnection, limits=limits),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",  # the application logs what it fails at
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(request_s) + 1,
        )

    def _run(self) -> None:
        try:
            self._uvicorn.run(sockets=[self._socket])
        except BaseException as error:  # it is raised again where the server is waited for
            self._error = error

    def wait(self) -> None:
        """Waits until the server ends by itself, which it does only by an error.

        Raises:
            Exception: that error.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Answers the requests that are in, refuses new ones, and frees the model.

        An exception in between, such as a second Ctrl-C, ends it at once. A model that hangs is
        left alone some seconds after its last request was given up, and is not freed.
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
        self._takeover.close(patience_s=patience_s)
        has_ended = self._app.close(patience_s=patience_s)
        self._current.close()
        if not has_ended:
            _LOG.error(
                "The model still runs a batch, %g seconds after its last request was given up: it"
                " hangs.\n  The server ends without it. Look at the device and its driver.",
                patience_s,
            )

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _take(host: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen yet."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise RecipeError(
            f"The host {host!r} has no address: {getattr(error, 'strerror', None) or error}.\n"
            "  Take 127.0.0.1 for this machine alone, or 0.0.0.0 for the network."
        ) from error
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _explain(error, host, port) from error
    return taken


def _listen(taken: socket.socket) -> None:
    host, port = taken.getsockname()[:2]
    try:
        taken.listen(_BACKLOG)
    except OSError as error:
        raise _explain(error, host, port) from error


def _explain(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return InUseError(
            f"Port {port} of {host} is in use by another program.\n"
            "  Stop that program, or choose another port: --port N (0 for a free one)."
        )
    reason = (error.strerror or str(error)).lower()
    return RecipeError(
        f"Port {port} of {host} cannot be used: {reason}.\n"
        "  Choose a port above 1023, and an address of this machine."
    )
