"""The seal of an `artifact.json`: a hash of its own content, which shows changes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdedge.files import sha256_json
from kdedge.records import Record, Sha256


@dataclass(frozen=True)
class Resealed(Record):
    """Record that a change of `artifact.json` by hand was accepted.

    Attributes:
        at: ISO 8601 time.
        kdedge: version of kdedge that accepted it.
        before: the seal before the change; None if there was none.
    """

    at: str
    kdedge: str
    before: Sha256 | None


def seal_of(values: Mapping[str, Any]) -> str:
    """The hash of the whole content except the seal."""
    return sha256_json({key: value for key, value in values.items() if key != "seal"})


def is_format_1(data: bytes) -> bool:
    """Whether a file is of format 1 (version 0.1); false for a file that is not JSON."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == 1
