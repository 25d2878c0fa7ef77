"""Connections without a request: how long and how many may wait, and how they are accepted."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kdedge.errors import os_reason

log = logging.getLogger(__name__)

BACKLOG = 2048
_ERROR_EVERY_S = 1.0


class WaitingConnections:
    """The connections of a server that wait for a request.

    A connection waits until the headers of a request are complete, from its start or from its last
    answer. It is closed when its time is over. If there are too many, a new one closes the one that
    has waited longest, so that clients that send nothing do not keep others away.

    Args:
        most: number of connections that may wait.
        headers_s: seconds that a connection may wait.
    """

    def __init__(self, most: int, headers_s: float) -> None:
        self._most = most
        self._headers_s = headers_s
        self._timers: dict[Connection, asyncio.TimerHandle] = {}  # the longest wait first

    def add(self, connection: Connection) -> None:
        """Adds a connection that begins to wait."""
        if len(self._timers) >= self._most:
            self._give_up(next(iter(self._timers)))
        timer = connection.loop.call_later(self._headers_s, self._give_up, connection)
        self._timers[connection] = timer

    def remove(self, connection: Connection) -> None:
        """Removes a connection if it waits."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self, connection: Connection) -> None:
        self.remove(connection)
        connection.transport.abort()  # `close` would first wait for a client that reads nothing

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._timers


class Connection(H11Protocol):  # type: ignore[misc]  # mypy does not read uvicorn
    """A connection of uvicorn that is one of the `WaitingConnections` while it has no request."""

    def __init__(self, waiting: WaitingConnections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._waiting = waiting

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._waiting.add(self)

    def data_received(self, data: bytes) -> None:
        """Ends the wait if the headers are complete now."""
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request if it is not here yet."""
        super().on_response_complete()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the wait."""
        self._waiting.remove(self)
        super().connection_lost(exc)

    def _update(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._waiting.remove(self)
        elif self not in self._waiting:
            self._waiting.add(self)


class WebServer(uvicorn.Server):  # type: ignore[misc]  # mypy does not read uvicorn
    """uvicorn's server, which says once a second at most that there are too many open files.

    Its configuration needs `loop="asyncio"`, and `backlog=1`: asyncio accepts as many connections
    at once, before a limit sees the first, and as often tries in vain where there are too many open
    files.
    """

    _told_s = -math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        asyncio.get_running_loop().set_exception_handler(self._on_error)
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(BACKLOG)  # asyncio has set its own, 1

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)):
            loop.default_exception_handler(context)
        elif loop.time() >= self._told_s + _ERROR_EVERY_S:
            self._told_s = loop.time()
            log.error(f"New connections have to wait: {os_reason(error)}. Raise `ulimit -n`.")
