"""Connections whose client is too slow, too long-winded, or one too many."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_HEADER_BYTES = 65_536
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)
_LONG_HEADERS = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-length: 0\r\n\r\n"
)


class ConnectionLimits(NamedTuple):
    """Limits of connections.

    Attributes:
        headers_s: seconds from the connection, or a request's first byte, to the end of its
            headers.
        request_s: seconds from there to the end of its body and of the answer.
        n_connections: connections at once.
    """

    headers_s: float
    request_s: float
    n_connections: int


class LimitedConnection(HttpToolsProtocol):  # type: ignore[misc]
    """uvicorn's connection, which is closed if the client exceeds a limit.

    uvicorn itself waits without end for a request's headers and body, and for a client that does
    not read its answer.
    """

    def __init__(self, *arguments: Any, limits: ConnectionLimits, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._n_header_bytes = 0
        self._has_headers = self._has_message = False
        self._since = self.loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """A client has connected."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.n_connections:
            transport.write(_BUSY)
            transport.close()
        self._check()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request is in."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if not self._has_headers and not self.transport.is_closing():
            self._n_header_bytes += len(data)
            if self._n_header_bytes > _HEADER_BYTES:
                self.transport.write(_LONG_HEADERS)
                self.transport.close()

    def on_message_begin(self) -> None:
        """The first byte of a request is in."""
        self._since, self._n_header_bytes = self.loop.time(), 0
        self._has_headers = self._has_message = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's headers are in."""
        self._since, self._has_headers = self.loop.time(), True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """A request's body is in."""
        self._has_message = True
        super().on_message_complete()

    def _check(self) -> None:
        """Closes the connection if its time is over, and else looks again when it will be."""
        is_idle = self._has_message and self.cycle.response_complete and not self.pipeline
        is_sent = not self.transport.get_write_buffer_size()
        limit_s = self._limits.request_s if self._has_headers else self._limits.headers_s
        left_s = self._since + limit_s - self.loop.time()
        if left_s <= 0 and not (is_idle and is_sent):  # uvicorn closes those that are idle
            self.transport.abort()
            return
        self._timer = self.loop.call_later(min(limit_s / 4, 1.0), self._check)
