"""Downloads one file from one URL over HTTP.

pooch and requests start anew after a broken connection, at the first byte of forty gigabytes. Here
`NAME.part` has the bytes so far, and the rest is asked for where a hash will tell whether the parts
fit. Otherwise it starts over.
"""

from __future__ import annotations

import http.client
import logging
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPResponse
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from kdedge import __version__
from kdedge.data.benchmarks import Download
from kdedge.errors import ResourceError
from kdedge.files import explain_os_error
from kdedge.progress import Advance, progress, readable_bytes

_LOG = logging.getLogger(__name__)

WAITS_S: tuple[float, ...] = (1.0, 4.0, 15.0, 60.0)
"""Seconds before each retry; the list restarts after a retry that got more bytes."""

_TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 18
_RETRYABLE = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
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
        # Control characters in a server's text could change the terminal
        super().__init__("".join(c if c.isprintable() else " " for c in reason).strip())
        self.kind = kind


def size_of(part: Path) -> int:
    """Returns the number of bytes so far."""
    return part.stat().st_size if part.exists() else 0


def download(url: str, part: Path, wanted: Download, *, waits_s: Sequence[float] = WAITS_S) -> None:
    """Downloads the missing bytes of a file from one URL.

    Args:
        url: http or https.
        part: the bytes so far.
        wanted: the file; its size is checked, its hash is not.
        waits_s: see `WAITS_S`.

    Raises:
        AddressError: the URL does not provide the file. The bytes so far are kept.
        ResourceError: the disk is full, or the folder may not be written. The bytes so far are
            kept.
    """
    begun = furthest = size_of(part)
    n_failed = 0
    while True:
        try:
            _fetch_rest(url, part, wanted)
        except AddressError as error:
            if size_of(part) > furthest:
                furthest, n_failed = size_of(part), 0
            is_lost = error.kind == "unreachable" and furthest > begun
            if not (is_lost or error.kind == "retryable") or n_failed == len(waits_s):
                raise
            _LOG.info("%s: %s. Trying again in %.0f s.", wanted.name, error, waits_s[n_failed])
            time.sleep(waits_s[n_failed])
            n_failed += 1
        else:
            return


def _fetch_rest(url: str, part: Path, wanted: Download) -> None:
    """Downloads the missing bytes; all of them if no hash will tell whether the parts fit."""
    n_had = size_of(part) if wanted.sha256 is not None else 0
    if n_had and n_had == wanted.n_bytes:
        return
    server = urlsplit(url).hostname or url
    with _open(url, server, part, n_had) as response:
        start = n_had if response.status == 206 else 0
        if n_had and not start:
            _LOG.info("Downloading %s from the beginning.", wanted.name)
        n_bytes = wanted.n_bytes if response.length is None else start + response.length
        _check(response, server, part, wanted, n_bytes, start)
        what = f"fetching {wanted.name}"
        with progress(what, n_bytes, done=start, in_bytes=True) as advance:
            _write(response, server, part, n_bytes, start, advance)


def _open(url: str, server: str, part: Path, n_had: int) -> HTTPResponse:
    headers = {"User-Agent": f"kdedge/{__version__}", "Accept-Encoding": "identity"}
    if n_had:
        headers["Range"] = f"bytes={n_had}-"
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310
        response = urllib.request.build_opener().open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # what is there is longer than the file is now
            part.unlink()
        kind: Literal["retryable", "gone"] = "retryable" if error.code in _RETRYABLE else "gone"
        raise AddressError(f"{server} answers {error.code} {error.reason}", kind) from error
    except urllib.error.URLError as error:  # before the request was sent
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise AddressError(f"{server} cannot be reached: {reason}", "unreachable") from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(server, error) from error
    assert isinstance(response, HTTPResponse)
    return response


def _broken(server: str, error: Exception) -> AddressError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return AddressError(f"The connection to {server} broke: {reason}", "retryable")


def _check(
    response: HTTPResponse,
    server: str,
    part: Path,
    wanted: Download,
    n_bytes: int | None,
    start: int,
) -> None:
    """Checks kind, size, and the disk: twice the size for an archive of images."""
    if response.headers.get_content_type() == "text/html":
        page = (
            "Google Drive sends its warning page (a large file, or one downloaded too often today)"
            if server.endswith(("drive.google.com", "drive.usercontent.google.com"))
            else f"{server} sends a web page"
        )
        raise AddressError(f"{page} instead of the file", "wrong")
    if n_bytes is None:
        return
    if wanted.n_bytes not in (None, n_bytes):
        text = f"{server} has a file of {n_bytes} bytes, expected {wanted.n_bytes}"
        raise AddressError(text, "wrong")
    free = shutil.disk_usage(part.parent).free + (0 if start else size_of(part))
    needed = n_bytes - start + (n_bytes if wanted.unpack else 0)
    if free < needed:
        unpacked = ", and about as much again to unpack it" if wanted.unpack else ""
        raise ResourceError(
            f"{part.parent} has {readable_bytes(free)} free, {wanted.name} needs"
            f" {readable_bytes(needed)} more ({readable_bytes(n_bytes)}{unpacked}).\n"
            "  Free some space, or name another folder with --data."
        )


def _write(
    response: HTTPResponse,
    server: str,
    part: Path,
    n_bytes: int | None,
    start: int,
    advance: Advance,
) -> None:
    n_done = start
    try:
        with part.open("ab" if start else "wb") as file:
            while True:
                try:
                    block = response.read1(_BLOCK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _broken(server, error) from error
                if not block:
                    break
                n_done += len(block)
                if n_bytes is not None and n_done > n_bytes:
                    part.unlink()
                    raise AddressError(f"{server} sends more than {n_bytes} bytes", "wrong")
                file.write(block)
                advance(n_done)
    except OSError as error:
        raise ResourceError(
            f"{explain_os_error(error, part)}\n  The downloaded part is kept; run the same command"
            " again to continue."
        ) from error
    if n_bytes is not None and n_done != n_bytes:
        text = f"{server} ended after {n_done} of {n_bytes} bytes"
        raise AddressError(text, "retryable")
