"""Downloads one file from one URL over HTTP and resumes an earlier attempt.

Neither pooch nor requests resumes a download, and requests loses the block during which a
connection breaks. The standard library's `read1` returns every byte that arrived.
"""

from __future__ import annotations

import http.client
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.client import HTTPMessage, HTTPResponse
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from kdedge import __version__
from kdedge.data._partial import Partial, Version
from kdedge.data.benchmarks import Download
from kdedge.errors import ResourceError
from kdedge.files import explain_os_error
from kdedge.progress import progress, readable_bytes

_LOG = logging.getLogger(__name__)

WAITS_S = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each retry; the list restarts after a retry that got more bytes."""

_TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 18
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Retryable status codes."""


class AddressError(Exception):
    """A URL does not provide the file.

    Args:
        reason: why, as a sentence without a full stop.
        kind: `gone`, the server does not have it; `wrong`, it sends something else; `unreachable`,
            the server cannot be reached; `retryable`, another attempt may succeed.
    """

    def __init__(
        self, reason: str, kind: Literal["gone", "wrong", "unreachable", "retryable"]
    ) -> None:
        super().__init__(reason)
        self.kind = kind


def download(
    url: str, partial: Partial, wanted: Download, *, waits_s: Sequence[float] = WAITS_S
) -> None:
    """Downloads the missing bytes of a file from one URL into `partial.part`.

    Args:
        url: http or https.
        partial: the bytes so far.
        wanted: the file; its size is checked, its hash is not.
        waits_s: see `WAITS_S`.

    Raises:
        AddressError: the URL does not provide the file. The bytes so far are kept.
        ResourceError: the disk is full, or the folder may not be written. The bytes so far are
            kept.
    """
    begun = furthest = partial.size()
    n_failed = 0
    while True:
        try:
            _fetch_rest(url, partial, wanted)
        except AddressError as error:
            if partial.size() > furthest:
                furthest, n_failed = partial.size(), 0
            is_lost = error.kind == "unreachable" and furthest > begun
            if not (is_lost or error.kind == "retryable") or n_failed == len(waits_s):
                raise
            _LOG.info("%s: %s. Trying again in %.0f s.", wanted.name, error, waits_s[n_failed])
            time.sleep(waits_s[n_failed])
            n_failed += 1
        else:
            return


def _fetch_rest(url: str, partial: Partial, wanted: Download) -> None:
    known, n_had = partial.read_version(), partial.size()
    if known is None or not known.may_go_on(url, wanted):
        n_had = 0
    if known is not None and n_had and n_had == known.n_bytes:
        return
    headers = {}
    if known is not None and n_had:
        headers["Range"] = f"bytes={n_had}-"
        if known.url == url and known.validator:
            headers["If-Range"] = known.validator
    with _open(url, headers, partial) as response:
        found, start = _describe(response, url)
        if start and (start != n_had or known is None or _is_other(found, known)):
            partial.drop()
            raise AddressError(
                f"{_server(url)} has a different version of the file now", "retryable"
            )
        if n_had and not start:
            _LOG.info("Downloading %s from the beginning.", wanted.name)
        _check_answer(response, found, wanted)
        if found.n_bytes is None:  # else an endless body would fill the disk
            found = replace(found, n_bytes=wanted.n_bytes)
        _check_room(partial, found, start, wanted)
        _write(response, partial, found, start)


def _is_other(found: Version, known: Version) -> bool:
    """Whether two responses differ in size, ETag or date, as far as both have them."""
    pairs: list[tuple[object, object]] = [(found.n_bytes, known.n_bytes)]
    if found.url == known.url:
        pairs += [(found.etag, known.etag), (found.modified, known.modified)]
    return any(here and there and here != there for here, there in pairs)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but not from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in {"http", "https"} or (req.type == "https" and scheme == "http"):
            fp.close()
            raise AddressError(
                f"{req.host} redirects from {req.type} to {scheme}, which is not allowed", "gone"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
    ) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError as error:
            fp.close()
            text = f"{req.host} redirects to an invalid address: {_plain(str(error))}"
            raise AddressError(text, "gone") from error

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _open(url: str, headers: dict[str, str], partial: Partial) -> HTTPResponse:
    """Sends a request over http or https; other schemes are refused."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SafeRedirects(),
    ):
        opener.add_handler(handler)
    identity = {"User-Agent": f"kdedge/{__version__}", "Accept-Encoding": "identity"}
    request = urllib.request.Request(url, headers={**identity, **headers})  # noqa: S310 - see above
    try:
        response = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        raise _explain_status(error, url, partial) from error
    except urllib.error.URLError as error:  # before the request was sent
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise AddressError(f"{_server(url)} cannot be reached: {reason}", "unreachable") from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(url, error) from error
    assert isinstance(response, HTTPResponse)
    return response


def _explain_status(error: urllib.error.HTTPError, url: str, partial: Partial) -> AddressError:
    if error.code == 416:  # what is there is longer than the file is now
        partial.drop()
        return AddressError(f"{_server(url)} has a shorter version of the file now", "retryable")
    if error.code in {301, 302, 303, 307, 308}:
        return AddressError(f"{_server(url)} {_explain_redirect(error)}", "gone")
    text = f"{_server(url)} answers {error.code} {_plain(error.reason)}".rstrip()
    return AddressError(text, "retryable" if error.code in _RETRYABLE else "gone")


def _explain_redirect(error: urllib.error.HTTPError) -> str:
    if error.reason.startswith(urllib.request.HTTPRedirectHandler.inf_msg):
        return "redirects in a circle"
    target = error.headers.get("Location")
    if target is None:
        return "redirects without a target"
    return f"redirects to {_plain(target)[:200]}, which is not allowed"


def _plain(text: str) -> str:
    """Removes control characters from a server's text; they could change the terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _broken(url: str, error: Exception) -> AddressError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return AddressError(f"the connection to {_server(url)} broke: {_plain(reason)}", "retryable")


def _server(url: str) -> str:
    return urlsplit(url).hostname or url


def _describe(response: HTTPResponse, url: str) -> tuple[Version, int]:
    """The version of the file in a response, and the offset of its first byte."""
    headers = response.headers
    start, size = 0, headers.get("Content-Length", "")
    if response.status == 206:
        pattern = r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)"
        matched = re.fullmatch(pattern, headers.get("Content-Range", "").strip())
        start, size = (int(matched[1]), matched[2]) if matched else (-1, "")
    n_bytes = int(size) if re.fullmatch(r"\d{1,18}", size) else None
    return Version(url, n_bytes, headers.get("ETag"), headers.get("Last-Modified")), start


def _check_answer(response: HTTPResponse, found: Version, wanted: Download) -> None:
    server = _server(found.url)
    if response.headers.get_content_type() == "text/html":
        page = (
            "Google Drive sends its warning page (a large file, or one downloaded too often today)"
            if server.endswith(("drive.google.com", "drive.usercontent.google.com"))
            else f"{server} sends a web page"
        )
        raise AddressError(f"{page} instead of the file", "wrong")
    if None not in (found.n_bytes, wanted.n_bytes) and found.n_bytes != wanted.n_bytes:
        text = f"{server} has a file of {found.n_bytes} bytes, expected {wanted.n_bytes}"
        raise AddressError(text, "wrong")


def _check_room(partial: Partial, found: Version, start: int, wanted: Download) -> None:
    """Checks the free disk space: twice the size for an archive, since images hardly compress."""
    if found.n_bytes is None:
        return
    folder = partial.path.parent
    free = shutil.disk_usage(folder).free + (0 if start else partial.size())
    needed = found.n_bytes - start + (found.n_bytes if wanted.unpack else 0)
    if free < needed:
        unpacked = ", and about as much again to unpack it" if wanted.unpack else ""
        raise ResourceError(
            f"{folder} has {readable_bytes(free)} free, {wanted.name} needs"
            f" {readable_bytes(needed)} more ({readable_bytes(found.n_bytes)}{unpacked}).\n"
            "  Free some space, or name another folder with --data."
        )


def _write(response: HTTPResponse, partial: Partial, found: Version, start: int) -> None:
    n_done, name = start, partial.path.name
    with (
        progress(f"fetching {name}", found.n_bytes, done=start, in_bytes=True) as advance,
        _opened(partial, start) as file,
    ):
        if not start:  # now that the file is empty
            partial.write_version(found)
        for block in _blocks(response, found.url):
            n_done += len(block)
            if found.n_bytes is not None and n_done > found.n_bytes:
                partial.drop()
                text = f"{_server(found.url)} sends more than {found.n_bytes} bytes"
                raise AddressError(text, "wrong")
            _append(file, block, partial)
            advance(n_done)
    if found.n_bytes is not None and n_done != found.n_bytes:
        raise AddressError(
            f"{_server(found.url)} ended after {n_done} of {found.n_bytes} bytes", "retryable"
        )


def _opened(partial: Partial, start: int) -> IO[bytes]:
    try:
        return partial.part.open("ab" if start else "wb", buffering=0)
    except OSError as error:
        raise explain_os_error(error, partial.part) from error


def _append(file: IO[bytes], block: bytes, partial: Partial) -> None:
    view = memoryview(block)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise ResourceError(
            f"{explain_os_error(error, partial.part)}\n"
            "  The downloaded part is kept; run the same command again to continue."
        ) from error


def _blocks(response: HTTPResponse, url: str) -> Iterator[bytes]:
    """Yields the bytes as they arrive, at most 256 KiB at a time."""
    while True:
        try:
            block: Any = response.read1(_BLOCK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _broken(url, error) from error
        if not block:
            return
        yield block
