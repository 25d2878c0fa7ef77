"""Weights by pretrained tag: from open_clip's caches on this machine, or fetched once.

A log line names the file, its server and the folder before anything is fetched. Without a network
the error is raised at once, as the hub's client alone would retry for a minute.
"""

from __future__ import annotations

import logging
import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

log = logging.getLogger(__name__)

_REACH_WITHIN_S = 10.0
_URL_CACHE = Path("~/.cache/clip")
"""open_clip's folder for files from a plain address, whose SHA-256 it checks."""

_DEFAULT_FILE = "open_clip_pytorch_model.bin"
"""The file that open_clip fetches if a pretrained entry names only a repository."""


def fetch_pretrained(pretrained: Mapping[str, Any]) -> Path:
    """The file of open_clip's pretrained weights, fetched if it is not on this machine.

    Args:
        pretrained: open_clip's entry for a model and tag: `hf_hub` or `url`.

    Raises:
        OSError: it is not on this machine, and its server cannot be reached. Other errors of the
            transport pass through.
    """
    if pretrained.get("hf_hub"):
        cached = _file_in_hub_cache(pretrained["hf_hub"])
        if cached is not None:
            return cached
        _say(pretrained["hf_hub"].rstrip("/"), constants.ENDPOINT, Path(constants.HF_HUB_CACHE))
        _check_reachable(constants.ENDPOINT)
    else:
        folder, name = _URL_CACHE.expanduser(), pretrained["url"].rpartition("/")[2]
        if not (folder / name).is_file():
            _say(name, pretrained["url"], folder)
            _check_reachable(pretrained["url"])
    return Path(open_clip.download_pretrained(dict(pretrained)))


def fetch_from_hub(repository: str, name: str) -> Path:
    """A file of a repository on the hub, fetched if it is not on this machine.

    Args:
        repository: `owner/repository`.
        name: name of the file.

    Raises:
        OSError: it is not on this machine, and its server cannot be reached. Other errors of the
            transport pass through.
    """
    cached = try_to_load_from_cache(repository, name)
    if isinstance(cached, str):
        return Path(cached)
    _say(f"{repository}/{name}", constants.ENDPOINT, Path(constants.HF_HUB_CACHE))
    _check_reachable(constants.ENDPOINT)
    return Path(hf_hub_download(repository, name))


def _say(what: str, address: str, folder: Path) -> None:
    server = urlsplit(address).netloc.rpartition("@")[2]  # the address without a password
    log.info("Fetching the weights %s from %s into %s.", what, server, folder)


def _file_in_hub_cache(place: str) -> Path | None:
    """The file of `owner/repository/[name]`, safetensors first, as open_clip looks for it."""
    repository, _, name = place.rpartition("/")
    name = name or _DEFAULT_FILE
    stem = "open_clip_model" if name == _DEFAULT_FILE else name.rpartition(".")[0]
    for candidate in (f"{stem}.safetensors", name):
        found = try_to_load_from_cache(repository, candidate)
        if isinstance(found, str):
            return Path(found)
    return None


def _check_reachable(address: str) -> None:
    """Connects once; skipped behind a proxy, as only the proxy can reach the server."""
    if {"http", "https", "all"} & urllib.request.getproxies().keys():
        return
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=_REACH_WITHIN_S).close()
