"""Weights by pretrained tag: from open_clip's caches on this machine, else fetched, once.

A machine without a network is told so at once: the hub's client alone would try again for a minute.
"""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import open_clip
from huggingface_hub import constants, try_to_load_from_cache

_REACH_WITHIN_S = 10.0
_DEFAULT_FILE = "open_clip_pytorch_model.bin"
"""What open_clip fetches where a pretrained entry names a repository alone."""


def fetch_pretrained(pretrained: Mapping[str, Any]) -> Path:
    """Gives the file of open_clip's pretrained weights.

    Args:
        pretrained: open_clip's entry for a model and tag: `hf_hub` or `url`.

    Raises:
        OSError: it is not on this machine, and its server cannot be reached; other transports'
            errors pass through as they are.
    """
    cached = _cached_file(pretrained)
    if cached is not None:
        return cached
    _check_reachable(constants.ENDPOINT if pretrained.get("hf_hub") else pretrained["url"])
    return Path(open_clip.download_pretrained(dict(pretrained)))


def _cached_file(pretrained: Mapping[str, Any]) -> Path | None:
    """The file in the hub's cache, safetensors first, as open_clip looks for it."""
    repository, _, name = str(pretrained.get("hf_hub", "")).rpartition("/")
    if not repository:
        return None
    name = name or _DEFAULT_FILE
    stem = "open_clip_model" if name == _DEFAULT_FILE else name.rpartition(".")[0]
    for candidate in (f"{stem}.safetensors", name):
        found = try_to_load_from_cache(repository, candidate)
        if isinstance(found, str):
            return Path(found)
    return None


def _check_reachable(address: str) -> None:
    """Connects once; behind a proxy only the proxy knows."""
    if urllib.request.getproxies():
        return
    parts = urlsplit(address)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=_REACH_WITHIN_S).close()
