"""Files and folders that are complete or absent: atomic writes, hashes, numbered folders."""

from __future__ import annotations

import codecs
import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kdedge.errors import (
    NO_ROOM,
    DataError,
    InUseError,
    KdedgeError,
    RecipeError,
    ResourceError,
    explain_os_error,
    explaining_writes,
    os_reason,
)
from kdedge.locks import delete_unlocked, lock_itself, where_supported
from kdedge.progress import readable_bytes

SETTLED_NS = 3_000_000_000
"""A file that changed less than 3 s before it was read may change again without a new time stamp:
FAT counts in steps of 2 s."""

MAX_MODEL_BYTES = 4 << 30
"""Files that a runtime reads at once have fewer bytes."""

MAX_LIST_BYTES = 1 << 30
"""Lists of images have fewer bytes."""

MAX_JSON_BYTES = 256 << 20
"""Records have fewer bytes."""

MAX_NAMES_BYTES = 64 << 20
"""Class names, and sentences about classes, have fewer bytes."""

MAX_YAML_BYTES = 1 << 20
"""Recipes and suites have a few thousand bytes; a YAML reader takes minutes for 50 MB."""


class FileStamp(NamedTuple):
    """A file's size in bytes, times of change in ns, and inode; a change of its bytes changes one.

    Unlike the content's time of change (mtime), the inode's (ctime) cannot be set back.
    """

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Returns the stamp of a file's status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def is_settled(self, read_ns: int) -> bool:
        """Whether every change of the file after `read_ns`, when it was read, changes the stamp."""
        return max(self.modified_ns, self.changed_ns) < read_ns - SETTLED_NS


def home_path(path: str | os.PathLike[str]) -> Path:
    """The path with `~` or `~user` at its start expanded if there is such a user."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - the method fails for other names


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file atomically: even after a kill, it holds all old bytes or all new ones.

    The new bytes survive a power failure; if the file system cannot ensure that, it warns.

    Raises:
        ResourceError: the disk is full or the folder may not be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno(), path.parent)
        temporary.replace(path)
    except BaseException as error:  # Ctrl-C, too, must not leave a half-written file
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise explain_os_error(error, path) from error
        raise
    with contextlib.suppress(OSError):  # the folder may be writable but not readable
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # makes the new name durable
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def written_together(path: Path) -> Iterator[Path]:
    """Context in which a file and others that belong to it are written: none if it fails.

    Yields:
        A path of that name in a hidden folder. When the context ends, the folder's files move to
        the folder of `path`, and `path` last: a process that is killed in between leaves the others
        without it, or with an old one.

    Raises:
        ResourceError: a file cannot be written.
    """
    with explaining_writes(path):
        hidden = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    with hidden as folder:
        part = Path(folder, path.name)
        with _filling(part.parent, path):
            yield part
        with explaining_writes(path):
            for file in sorted(part.parent.iterdir(), key=lambda file: file == part):
                with file.open("rb") as written:
                    sync(written.fileno(), part.parent)
                file.replace(path.parent / file.name)


@contextlib.contextmanager
def _filling(part: Path, final: Path) -> Iterator[None]:
    """Context in which a caller fills a folder: explains a full disk, and errors of its files."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM or str(error.filename).startswith(str(part)):
            raise explain_os_error(error, final) from error
        raise


def check_writable(folder: Path) -> None:
    """Checks that files can be written to a folder, before work whose result goes there.

    Raises:
        ResourceError: the folder may not be written.
    """
    if not os.access(folder, os.W_OK):
        raise ResourceError(
            f"{folder} may not be written.\n  Get the right to write it, or work on a copy of it."
        )


def nearest_existing(path: Path) -> Path:
    """Returns a path if it exists, else the nearest folder above it that does."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def check_room(path: Path, n_bytes: int, what: str, *, remedy: str) -> None:
    """Checks that a disk has room for what is going to be written.

    Args:
        path: where it is written; it may not exist yet.
        n_bytes: room that is still needed.
        what: what needs it, for the message.
        remedy: the message's last line.

    Raises:
        ResourceError: the disk has less room.
    """
    place = nearest_existing(path)
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise ResourceError(
            f"{place} has {readable_bytes(free)} free, and {what} needs {readable_bytes(n_bytes)}"
            f" more.\n  {remedy}"
        )


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[None]:
    """Context with a new file that no other command can create; it is deleted if it stays empty.

    Raises:
        RecipeError: the file exists.
        ResourceError: the file cannot be written.
    """
    try:
        path.touch(exist_ok=False)
    except FileExistsError as error:
        raise already_exists(path) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecipeError(
            f"{path} cannot be written: the folder {path.parent} does not exist.\n"
            "  Create it, or name another file."
        ) from error
    except OSError as error:
        raise explain_os_error(error, path) from error
    try:
        yield
    finally:
        if path.exists() and not path.stat().st_size:
            path.unlink()


def already_exists(path: Path) -> RecipeError:
    """Returns the error for a new file or folder whose path exists."""
    return RecipeError(
        f"{path} exists, and nothing is overwritten.\n  Move it away, or name another one."
    )


def refuse_existing(path: Path) -> None:
    """Raises the error for a file or folder that exists."""
    if os.path.lexists(path):
        raise already_exists(path)


def sync(descriptor: int, path: Path) -> None:
    """Flushes an open file or folder to the disk, if its file system can."""
    with where_supported(path, otherwise="a power failure may undo the last files written"):
        os.fsync(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically; keys keep their order."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def open_regular(path: Path) -> BinaryIO:
    """Opens a file that a user named, also through links, to read its bytes.

    A device has no end, and a pipe waits for a writer, so neither is opened.

    Raises:
        OSError: there is no such file, it may not be read, or it is no regular file.
    """
    _check_is_regular(path.stat(), path)  # some devices do something when they are opened
    # Without blocking, since the path may be another file a moment later
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check_is_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_is_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a device, pipe or socket, not a file", str(path))


def check_regular(path: Path) -> None:
    """Checks that a library which opens a file by its path can read it, as `open_regular` does.

    Raises:
        OSError: there is no such file, it may not be read, or it is no regular file.
    """
    open_regular(path).close()


def read_regular(path: Path, *, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """Reads a file that a user named.

    Args:
        path: the file.
        max_bytes: a larger file is not what it should be, and is not read.

    Raises:
        OSError: as for `open_regular`, or the file is larger.
    """
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        if n_bytes > max_bytes:
            what = f"it has {n_bytes:,} bytes, expected {max_bytes:,} at most"
            raise OSError(errno.EFBIG, what, str(path))
        return file.read()


def read_bytes(path: Path, *, max_bytes: int = MAX_MODEL_BYTES) -> bytes:
    """Reads a record or a model file.

    Args:
        path: the file.
        max_bytes: a larger file is refused.

    Raises:
        DataError: there is no such file, it cannot be read, it is larger, or no regular file.
    """
    try:
        return read_regular(path, max_bytes=max_bytes)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error


def read_text(
    path: Path,
    *,
    remedy: str,
    error_type: type[KdedgeError] = DataError,
    max_bytes: int = MAX_LIST_BYTES,
) -> str:
    """Reads a UTF-8 text file that a person wrote, with or without a byte order mark.

    Args:
        path: the file.
        remedy: last line of the message about a file that cannot be read.
        error_type: class of the errors.
        max_bytes: a larger file is refused.

    Returns:
        The text, with a line feed at the end of each line.
    """
    try:
        data = read_regular(path, max_bytes=max_bytes)
    except OSError as error:
        raise error_type(f"{path} cannot be read: {os_reason(error)}.\n  {remedy}") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        what = "UTF-16, not UTF-8" if is_utf16 else f"not UTF-8 (byte {data[error.start]:#04x})"
        raise error_type(f"{path}:{line}: {what}.\n  Save it as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def sha256_file(path: Path, *, progress: Callable[[int], None] | None = None) -> str:
    """Returns the SHA-256 of a file's bytes, in hex.

    Args:
        path: the file.
        progress: called after each MiB with the number of bytes read.
    """
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress is not None:
                progress(file.tell())
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Returns the SHA-256 of a value's canonical JSON, in hex: equal values, equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_new_numbered_json(folder: Path, value: Any) -> Path:
    """Writes `folder/01.json`, or the next free number, and returns its path.

    No file is overwritten; two processes that write at the same time get two files.

    Raises:
        ResourceError: the disk is full or the folder may not be written.
    """
    with explaining_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
        number = _next_number(folder.glob("*.json"))
        while True:
            file = folder / f"{number:02d}.json"
            try:
                file.touch(exist_ok=False)
                break
            except FileExistsError:
                number += 1
    try:
        write_json(file, value)
    except BaseException:
        file.unlink(missing_ok=True)  # the file is still empty
        raise
    return file


def _next_number(paths: Iterable[Path]) -> int:
    """The number after the highest one among numbered paths; 1 if there are none."""
    newest = highest_number(paths)
    return 1 if newest is None else int(newest.stem) + 1


def highest_number(paths: Iterable[Path]) -> Path | None:
    """The folder or JSON file with the highest number as its name; None if no name is a number."""
    numbers = {path.name.removesuffix(".json"): path for path in paths}
    newest = max(filter(str.isdecimal, numbers), key=int, default=None)
    return None if newest is None else numbers[newest]


@dataclass
class NewFolder:
    """A new folder.

    Attributes:
        part: temporary path, to which its files are written.
        final: path after all files are written.
    """

    part: Path
    final: Path


@contextlib.contextmanager
def new_folder(folder: Path, *, is_numbered: bool = False) -> Iterator[NewFolder]:
    """Context with a new folder to fill; it gets its final name when the context ends.

    Until then it is `.NAME.part-*` and locked. An unlocked folder of that name was left by a killed
    process and is deleted; a locked one is being filled by another process.

    Args:
        folder: the new folder or, with `is_numbered`, its parent. Missing parents are made.
        is_numbered: name the new folder by the next free number in `folder`.

    Yields:
        The folder, whose `final` is valid after the context has ended.

    Raises:
        RecipeError: the folder exists.
        InUseError: another process is filling it.
        ResourceError: the folder cannot be written.
    """
    if not is_numbered:
        refuse_existing(folder)
    parent = folder if is_numbered else folder.parent
    part = parent / f".{folder.name}.part-{secrets.token_hex(4)}"
    new = NewFolder(part, folder)
    is_new_parent = not parent.exists()
    try:
        with explaining_writes(folder):
            parent.mkdir(parents=True, exist_ok=True)
            is_used = _delete_leftovers(parent, f".{folder.name}.part-", with_empty=not is_numbered)
            if is_used and not is_numbered:
                raise InUseError(
                    f"{folder} is in use by another process.\n"
                    "  Wait for it, or name another folder."
                )
            part.mkdir()
        with lock_itself(part):
            with _filling(part, folder):
                yield new
            with explaining_writes(folder):
                new.final = _renamed(part, folder, is_numbered=is_numbered)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if is_new_parent:
            with contextlib.suppress(OSError):  # not empty: it holds the new folder
                parent.rmdir()


def _renamed(part: Path, folder: Path, *, is_numbered: bool) -> Path:
    """Renames a folder to its final path (free, or an empty folder), which it returns."""
    number = _next_number(folder.iterdir()) if is_numbered else 0
    while True:
        final = folder / f"{number:02d}" if is_numbered else folder
        try:
            part.rename(final)
        except OSError as error:
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            if not is_numbered:  # another process has made it meanwhile
                raise already_exists(folder) from error
            number += 1
        else:
            return final


def _delete_leftovers(parent: Path, prefix: str, *, with_empty: bool) -> bool:
    """Deletes the folders that killed processes left; returns whether a folder is locked.

    A numbered folder that is empty stays: processes that start at once, as a suite's, may have made
    it and not locked it yet.
    """
    is_any_locked = False
    for part in parent.iterdir():
        if part.name.startswith(prefix):
            with contextlib.suppress(OSError):
                may_delete = with_empty or any(part.iterdir())
                if may_delete and not delete_unlocked(part):
                    is_any_locked = True
    return is_any_locked


def printable(name: str) -> str:
    """Returns a file name as valid UTF-8; bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
