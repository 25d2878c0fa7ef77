"""What a benchmark set's files are and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Download:
    """A file of a benchmark set.

    Attributes:
        name: what it is called on disk, in the set's folder.
        urls: where it is, the official address first, then mirrors; empty where terms ask for a
            manual download.
        gives: a path below the set's folder that is there once it is complete.
        manual: what to fetch by hand and where, one sentence; None where `urls` do.
        sha256: of the file, in hex; None where not known.
        n_bytes: its size; None where not known.
        unpack: `tar` (any compression), `zip`, or None for a file that stays as it is.
        into: folder below the set's, into which it is unpacked; "" for the set's own.
        top: folder in the archive whose content is unpacked, and nothing else; "" for all of it;
            None for `gives` alone, in whichever folder of the archive that is.
        mirror: another archive with the same content, for where no address gives this one.
    """

    name: str
    urls: tuple[str, ...]
    gives: str
    manual: str | None = None
    sha256: str | None = None
    n_bytes: int | None = None
    unpack: Literal["tar", "zip"] | None = None
    into: str = ""
    top: str | None = ""
    mirror: Download | None = None
