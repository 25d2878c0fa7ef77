"""Unpacks untrusted archives: completely or not at all, and never outside of their folder.

Python's own `tarfile.data_filter` accepts links, limits neither number nor size, and has no
counterpart for zip files. So names, kinds, number and sizes are checked here.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdedge.data.sources.webdataset import TarReader
from kdedge.errors import DataError, ResourceError
from kdedge.files import explain_os_error, printable
from kdedge.progress import progress, readable_bytes


@dataclass(frozen=True)
class ArchiveLimits:
    """Limits of an archive's content.

    Attributes:
        members: files and folders. ImageNet has 1.3 million files.
        ratio: unpacked over packed bytes. Photos reach about 1, annotations 20.
        free_bytes: unpacked bytes that are accepted whatever the ratio.
    """

    members: int = 4_000_000
    ratio: int = 100
    free_bytes: int = 1 << 24


LIMITS = ArchiveLimits()

_BLOCK_BYTES = 1 << 18
_TAR_BLOCK = 512
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, LookupError, OverflowError, NotImplementedError, RuntimeError),
)
"""Errors of the readers for truncated, damaged, encrypted or unknown archives."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    gives: str,
    top: str | None = "",
    into: str = "",
    limits: ArchiveLimits = LIMITS,
) -> None:
    """Unpacks a zip file or a tar file into a folder, completely or not at all.

    Everything is first unpacked into a hidden folder and then moved, `gives` last: if it exists,
    all else does. Modes, owners and dates are not restored.

    Args:
        archive: the archive, which is kept.
        folder: the benchmark set's folder.
        gives: a path below `folder` that exists afterwards.
        top: folder in the archive whose content is unpacked, and nothing else; "" for all of it;
            None, of a zip file, for `gives` alone, which may be in a folder or two of the archive.
        into: folder below `folder` for the content of `top`; "" for `folder` itself.
        limits: see `ArchiveLimits`.

    Raises:
        DataError: the archive is damaged, encrypted or a bomb; a member's name leaves the folder or
            occurs twice; a member is neither file nor folder; `gives` is not in it; another file
            has the name of a member.
        ResourceError: no room, or the folder may not be written.
    """
    temporary = folder / temporary_name(archive)
    shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
    try:
        target = _Target(temporary / "all", archive, limits)
        try:
            if archive.suffix == ".zip":
                _read_zip(archive, target, only=None if top is not None else gives)
            else:
                _read_tar(archive, target)
        except _DAMAGED as error:
            raise DataError(
                f"{archive} cannot be unpacked: {str(error).rstrip('.') or type(error).__name__}.\n"
                "  Remove it, so that it is fetched again."
            ) from error
        unpacked, wanted_part = temporary / "all", temporary / "in"
        if top is None:
            places = (path for depth in ("", "*/", "*/*/") for path in unpacked.glob(depth + gives))
            source, place, top = next(places, unpacked / gives), wanted_part / gives, gives
        else:
            source, place = unpacked / top, wanted_part / into
        if not (source.is_dir() or (place == wanted_part / gives and source.is_file())):
            raise DataError(
                f"{archive} does not contain {top}, which is expected in it.\n"
                "  Unpack it by hand and look for it; the archive may have changed."
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        source.rename(place)
        if not (temporary / "in" / gives).exists() and not (folder / gives).exists():
            raise DataError(
                f"{archive} does not contain {gives}, which is expected in it.\n"
                "  Unpack it by hand and look for it; the archive may have changed."
            )
        _move_into(temporary / "in", folder, last=PurePosixPath(gives).parts, archive=archive)
    except OSError as error:
        raise explain_os_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_name(archive: Path) -> str:
    """Returns the hidden folder that an archive is unpacked into first."""
    return f".unpacking-{archive.name}"


class _Target:
    """The folder that an archive's members are written into.

    Args:
        folder: the folder; it is created.
        archive: the archive.
        limits: see `ArchiveLimits`.
    """

    def __init__(self, folder: Path, archive: Path, limits: ArchiveLimits) -> None:
        self.archive = archive
        self.max_bytes = limits.free_bytes + limits.ratio * archive.stat().st_size
        self._limits = limits
        self._folder = folder
        self._n_members = 0
        folder.mkdir(parents=True)

    def need(self, n_bytes: int) -> None:
        """Checks a size against the limit and the free disk space, before anything is written."""
        if n_bytes > self.max_bytes:
            raise self.too_large()
        free = shutil.disk_usage(self._folder).free
        if free < n_bytes:
            raise ResourceError(
                f"{self.archive.parent} has {readable_bytes(free)} free, but unpacking"
                f" {self.archive.name} needs {readable_bytes(n_bytes)}.\n"
                "  Free some space and run the command again; the archive is kept."
            )

    def too_large(self) -> DataError:
        """Returns the error for an archive bomb."""
        return DataError(
            f"{self.archive} unpacks to more than {readable_bytes(self.max_bytes)}, over"
            f" {self._limits.ratio} times its size. Archives that are made to fill disks do that.\n"
            "  If you trust it, unpack it by hand."
        )

    def add_folder(self, name: str) -> None:
        """Creates a folder of the archive."""
        path = self._path(name)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._explain(error, name, path) from error

    def add_file(self, name: str, opened: IO[bytes]) -> None:
        """Writes a file of the archive."""
        path = self._path(name)
        if path == self._folder:
            raise self.refuse(name, "is a file without a name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                shutil.copyfileobj(opened, file)
        except OSError as error:
            if error.errno is None:  # of gzip, about the archive
                raise
            if isinstance(error, FileExistsError) and error.filename == str(path):
                raise self.refuse(name, "appears twice") from error
            raise self._explain(error, name, path) from error

    def refuse(self, name: str, why: str) -> DataError:
        """Returns the error for a member that is refused."""
        return DataError(
            f"{self.archive}: {printable(name)[:200]} {why}; the archive is not unpacked.\n"
            "  If you trust it, unpack it by hand; else remove it."
        )

    def _path(self, name: str) -> Path:
        self._n_members += 1
        if self._n_members > self._limits.members:
            raise DataError(
                f"{self.archive} has more than {self._limits.members:,} members.\n  If you trust"
                " it, unpack it by hand; else remove it."
            )
        is_odd = "\\" in name or "\0" in name or re.match(r"[A-Za-z]:", name)
        path = PurePosixPath(name)
        if is_odd or path.is_absolute() or ".." in path.parts:
            raise self.refuse(name, "leads out of the target folder")
        return self._folder / path

    def _explain(self, error: OSError, name: str, path: Path) -> DataError | ResourceError:
        """An impossible file name is the archive's error, anything else the disk's."""
        if isinstance(error, FileExistsError | NotADirectoryError | IsADirectoryError):
            return self.refuse(name, "is both a file and a folder")
        if error.errno == errno.ENAMETOOLONG:
            return self.refuse(name, "is too long for a file name")
        return explain_os_error(error, path)


class _LimitedReader(TarReader):
    """A decompressed archive, with a limit on the total size, too."""

    def __init__(self, file: Any, target: _Target) -> None:
        super().__init__(file)
        self._target = target

    def read(self, size: int = -1) -> bytes:
        data = super().read(size)
        if self.n_read > self._target.max_bytes:
            raise self._target.too_large()
        return data


def _read_tar(archive: Path, target: _Target) -> None:
    n_bytes = archive.stat().st_size
    target.need(n_bytes)
    with (
        archive.open("rb") as file,
        progress(f"unpacking {archive.name}", n_bytes, in_bytes=True) as advance,
    ):
        reader = _LimitedReader(_decompressed(file), target)
        with reader.open() as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                if member.isdir():
                    target.add_folder(member.name)
                elif member.isreg() and not member.issparse():
                    opened = tar.extractfile(member)
                    assert opened is not None
                    target.add_file(member.name, opened)
                else:
                    what = "a device" if member.isdev() else "a special file"
                    if member.issym() or member.islnk():
                        what = f"a link to {printable(member.linkname)[:200]}"
                    raise target.refuse(member.name, f"is {what}")
                advance(file.tell())
        if reader.last != bytes(_TAR_BLOCK):
            raise EOFError("it is cut short or damaged: the end mark is missing")
        while reader.read(_BLOCK_BYTES):  # to the checksum at the end of the compressed data
            pass


def _decompressed(file: IO[bytes]) -> Any:
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if magic.startswith(b"\xfd7zXZ"):
        return lzma.LZMAFile(file)
    return file


def _read_zip(archive: Path, target: _Target, *, only: str | None) -> None:
    """Unpacks all members, or only the members with one path in any folder."""
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        if only is not None:
            members = [info for info in members if f"/{only}/" in f"/{info.filename}/"]
        target.need(sum(member.file_size for member in members))
        n_done, n_bytes = 0, sum(member.compress_size for member in members)
        with progress(f"unpacking {archive.name}", n_bytes, in_bytes=True) as advance:
            for member in members:
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
                    what = "a link" if kind == stat.S_IFLNK else "a special file"
                    raise target.refuse(member.filename, f"is {what}")
                if member.is_dir():
                    target.add_folder(member.filename)
                else:
                    with file.open(member) as opened:
                        target.add_file(member.filename, opened)
                n_done += member.compress_size
                advance(n_done)


def _move_into(source: Path, target: Path, *, last: tuple[str, ...], archive: Path) -> None:
    """Moves the content of one folder into another.

    Files of the same size that are already in place stay: a killed process moved them.

    Args:
        source: the folder.
        target: the other folder; created if missing.
        last: parts of the path that is moved last; empty if it is not below.
        archive: for messages.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = sorted(entry.name for entry in os.scandir(source))
    for name in sorted(names, key=lambda name: name == (last[0] if last else None)):
        new, old = source / name, target / name
        if not os.path.lexists(old):
            new.rename(old)
        elif new.is_dir() and old.is_dir():
            below = last[1:] if last and name == last[0] else ()
            _move_into(new, old, last=below, archive=archive)
        elif new.is_dir() or not old.is_file() or new.stat().st_size != old.stat().st_size:
            raise DataError(
                f"{old} exists and differs from the file in {archive.name}.\n"
                "  Move it away and run the command again."
            )
