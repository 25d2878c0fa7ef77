"""A file of a benchmark set: its URLs, hash, and place in the set's folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Download:
    """A file of a benchmark set.

    Attributes:
        name: file name in the set's folder.
        urls: the official URL first, then mirrors; empty if its terms require a manual download.
        gives: a path below the set's folder that exists once the file is complete, or unpacked.
        manual: instructions for a manual download, one sentence; None if there are `urls`.
        sha256: of the file, in hex; None if unknown.
        n_bytes: its size; None if unknown.
        unpack: `tar` (any compression), `zip`, or None for a file that stays as it is.
        into: folder below the set's, into which it is unpacked; "" for the set's own.
        top: folder in the archive whose content is unpacked, and nothing else; "" for all of it;
            None for `gives` alone, in whichever folder of the archive that is.
        mirror: another archive with the same content, used if no URL provides this one.
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
