"""A partial download, and the version of the file that its bytes belong to.

While `NAME` is downloaded, `NAME.part` beside it has the bytes so far, and `NAME.part.json` their
URL and version, so that bytes of two versions are never joined.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from kdedge.data.benchmarks import Download
from kdedge.errors import DataError
from kdedge.files import explain_os_error, read_json, sync, write_json


@dataclass(frozen=True)
class Version:
    """A version of the file at a URL.

    Attributes:
        url: the URL.
        n_bytes: size of the whole file; None if the server does not say.
        etag: the response's ETag.
        modified: the response's Last-Modified.
        finished_ns: the complete file's time of change (mtime), in ns; None before.
    """

    url: str
    n_bytes: int | None
    etag: str | None
    modified: str | None
    finished_ns: int | None = None

    @property
    def validator(self) -> str | None:
        """The value for If-Range: a weak ETag does not name exact bytes, so the date is taken."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def may_go_on(self, url: str, wanted: Download) -> bool:
        """Whether a URL may send the rest: the version is the same, or a hash is checked later."""
        return wanted.sha256 is not None or (self.url == url and self.validator is not None)


class Partial:
    """A partial download.

    Attributes:
        path: where the complete file goes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self._record = path.with_name(f"{path.name}.part.json")

    def size(self) -> int:
        """Returns the number of bytes so far."""
        return self.part.stat().st_size if self.part.exists() else 0

    def is_finished(self) -> bool:
        """Whether a fetch wrote the complete file, and nobody replaced it since."""
        if self.part.exists() or not self.path.exists():
            return False
        version = self.read_version()
        return version is not None and version.finished_ns == self.path.stat().st_mtime_ns

    def finish(self) -> None:
        """Moves the complete file into place atomically."""
        version = self.read_version()
        try:
            with self.part.open("rb+") as file:
                sync(file.fileno(), self.part)
            if version is not None:
                self.write_version(replace(version, finished_ns=self.part.stat().st_mtime_ns))
            self.part.replace(self.path)
        except OSError as error:
            raise explain_os_error(error, self.path) from error

    def drop(self) -> None:
        """Removes the partial download, but not the complete file."""
        for file in (self.part, self._record):
            if file.exists():  # also on a read-only disk, if there is nothing to remove
                file.unlink(missing_ok=True)  # another download may remove the same file

    def read_version(self) -> Version | None:
        """Returns the version of the bytes so far; None if unknown."""
        try:
            return Version(**read_json(self._record))
        except (DataError, TypeError):
            return None

    def write_version(self, version: Version) -> None:
        """Records the version of the bytes so far."""
        write_json(self._record, asdict(version))
