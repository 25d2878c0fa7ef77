"""The seal of an `artifact.json`: the hash of its own content, so that a change is noticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdedge.files import sha256_json
from kdedge.records import Record, Sha256


@dataclass(frozen=True)
class Resealed(Record):
    """One acceptance of an `artifact.json` that was changed by hand.

    Attributes:
        at: ISO 8601 time.
        kdedge: the version that did it.
        before: the seal that the changed content did not fit; None where there was none.
    """

    at: str
    kdedge: str
    before: Sha256 | None


def seal_of(values: Mapping[str, Any]) -> str:
    """Gives the hash of the whole content but the seal."""
    return sha256_json({key: value for key, value in values.items() if key != "seal"})


def is_format_1(data: bytes) -> bool:
    """Whether a file says that it is of version 0.1; what is no JSON is for its reader to tell."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("format") == 1
