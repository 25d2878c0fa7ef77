"""Receives the bodies of requests, and refuses bodies that exceed the limits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from kdedge.serving.limits import RequestLimits


def too_busy(why: str) -> HTTPException:
    """The error for a request that may be tried again in a second."""
    return HTTPException(503, f"{why}; try again later", {"Retry-After": "1"})


_MAX_FIELDS = 8
_MAX_BODIES = 8  # bodies of the largest size in memory
_NO_IMAGE = ("text/", "application/json", "application/xml")


class Uploads:
    """The request bodies that are in memory now.

    Attributes:
        n_bytes: total size of the bodies.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self.n_bytes = 0

    @contextlib.asynccontextmanager
    async def body(self, request: Request, timeout_s: float) -> AsyncIterator[bytes]:
        """Context with the body of a request, whose size counts in `n_bytes` until the end.

        Raises:
            HTTPException: the body is compressed, too large or too slow, or all bodies together
                would exceed the limit.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "the body has a Content-Encoding; send it without one")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._limits.body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        try:
            try:
                await asyncio.wait_for(self._read(request, chunks), timeout_s)
            except asyncio.TimeoutError as error:
                raise HTTPException(
                    408,
                    f"the request was not complete after {self._limits.timeout:g} seconds",
                    {"Connection": "close"},
                ) from error
            chunks[:] = [b"".join(chunks)]
            yield chunks[0]
        finally:
            self.n_bytes -= sum(map(len, chunks))

    async def _read(self, request: Request, chunks: list[bytes]) -> None:
        n_bytes = 0
        async for chunk in request.stream():
            if not chunk:
                continue
            n_bytes += len(chunk)
            if n_bytes > self._limits.body_bytes:
                raise self._too_large()
            if self.n_bytes + len(chunk) > _MAX_BODIES * self._limits.body_bytes:
                raise too_busy("too much is being uploaded at once")
            chunks.append(chunk)
            self.n_bytes += len(chunk)

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the body is larger than {self._limits.max_megabytes} MB")


async def image_in(request: Request, body: bytes) -> bytes:
    """The image file in a body: the first file of a form, or the whole body.

    Raises:
        HTTPException: the content type is not of an image, or a form has no file.
    """
    kind = request.headers.get("content-type", "").lower()
    is_form = kind.startswith("multipart/form-data")
    if kind.startswith((*_NO_IMAGE, "multipart/")) and not is_form:
        raise HTTPException(
            415,
            f"the body is {kind.partition(';')[0]}; send an image file, or a form"
            " (multipart/form-data) with one",
        )
    if not is_form:
        return body

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    read = Request(request.scope, receive)
    try:
        async with read.form(max_files=1, max_fields=_MAX_FIELDS) as form:
            for _, value in form.multi_items():
                if isinstance(value, UploadFile):
                    data: bytes = await value.read()
                    return data
    except (HTTPException, FormParserError) as error:
        reason = getattr(error, "detail", None) or str(error)
        raise HTTPException(400, f"the form cannot be read: {reason.rstrip('.')}") from error
    raise HTTPException(400, "the form has no file; send the image as a file of it")
