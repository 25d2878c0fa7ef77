"""A folder of pictures that stays below a limit: the least wanted ones are replaced."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kdedge.errors import DataError, RecipeError
from kdedge.files import explain_os_error, read_json, write_atomic, write_json
from kdedge.lock import locked

STATE = ".kdedge-watch.json"
_LOCK = ".kdedge-watch.lock"
_LIMIT = re.compile(r"(\d+(?:\.\d+)?) ?([kKmMgG][bB])?", re.ASCII)
_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9}


@dataclass(frozen=True)
class Limit:
    """How much a folder may hold of what was written here.

    Attributes:
        pictures: number of pictures; None for any number.
        size_bytes: their size on disk; None for any size.
    """

    pictures: int | None = 1000
    size_bytes: int | None = None

    @classmethod
    def parse(cls, name: str, value: int | str) -> Limit:
        """Reads a number of pictures, or a size in kB, MB or GB.

        Args:
            name: of the setting, for the message.
            value: such as 500 or "2GB".

        Raises:
            RecipeError: it is neither, or 0.
        """
        found = _LIMIT.fullmatch(str(value).strip())
        if found is None or float(found[1]) <= 0 or (not found[2] and "." in found[1]):
            raise RecipeError(
                f"{name} is {value!r}; expected a number of pictures, or a size such as 500MB."
            )
        if not found[2]:
            return cls(int(found[1]))
        return cls(None, int(float(found[1]) * _UNITS[found[2].lower()]))


DEFAULT_LIMIT = Limit()


@dataclass
class _Written:
    """A picture that was written: its rank and size, and its time of change, nanoseconds."""

    rank: float
    n_bytes: int
    changed_ns: int | None


class BoundedFolder:
    """Writes pictures to a folder and removes those of the highest rank above a limit.

    A state file lists what was written, and nothing else is ever removed: a listed picture only
    while its size and its time of change are those that were written.

    Args:
        path: the folder; use `bounded_folder`, which locks it.
        limit: what it may hold.
    """

    def __init__(self, path: Path, limit: Limit) -> None:
        self._path, self._limit = path, limit
        self._written = _read_state(path / STATE)
        for name in [name for name in self._written if not self._is_ours(name)]:
            del self._written[name]

    def wants(self, rank: float) -> bool:
        """Whether a picture of this rank would be kept, as far as its size allows."""
        if not self._is_full(0, 1):
            return True
        return rank < max((one.rank for one in self._written.values()), default=float("inf"))

    def write(self, name: str, rank: float, data: bytes) -> Path | None:
        """Writes a picture if its rank is low enough.

        Args:
            name: of the file; a number is added if there is such a file.
            rank: pictures with a higher one are removed first.
            data: the file's bytes.

        Returns:
            The file; None if all that could be removed has a lower rank.

        Raises:
            ResourceError: it could not be written. Every picture that was there is there.
        """
        removed = self._to_remove(rank, len(data))
        if removed is None:
            return None
        path = self._free(name)
        self._written[path.name] = _Written(rank, len(data), None)
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            self._save()  # first, so that a kill leaves no picture that is not listed
            write_atomic(path, data)
            self._written[path.name].changed_ns = path.stat().st_mtime_ns
        except BaseException as error:
            if not path.exists():
                del self._written[path.name]
            if isinstance(error, OSError):
                raise explain_os_error(error, path) from error
            raise
        for old in removed:
            if self._is_ours(old):
                with contextlib.suppress(OSError):
                    (self._path / old).unlink()
            del self._written[old]
        self._save()
        return path

    def _to_remove(self, rank: float, n_bytes: int) -> list[str] | None:
        """The pictures to remove for a new one; None if it may not be written."""
        removed = list[str]()
        freed = 0
        by_rank = sorted(self._written, key=lambda name: -self._written[name].rank)
        while self._is_full(n_bytes - freed, 1 - len(removed)):
            if len(removed) == len(by_rank):
                return None
            name = by_rank[len(removed)]
            if self._written[name].rank <= rank:
                return None
            removed.append(name)
            freed += self._written[name].n_bytes
        return removed

    def _is_full(self, more_bytes: int, more_pictures: int) -> bool:
        size = sum(one.n_bytes for one in self._written.values()) + more_bytes
        number = len(self._written) + more_pictures
        limit = self._limit
        return (limit.pictures is not None and number > limit.pictures) or (
            limit.size_bytes is not None and size > limit.size_bytes
        )

    def _is_ours(self, name: str) -> bool:
        """Whether a listed picture is there as it was written."""
        try:
            status = (self._path / name).lstat()
        except OSError:
            return False
        one = self._written[name]
        return one.n_bytes == status.st_size and one.changed_ns in (None, status.st_mtime_ns)

    def _free(self, name: str) -> Path:
        wanted, number = Path(name), 1
        path = self._path / name
        while path.exists() or path.is_symlink():
            number += 1
            path = self._path / f"{wanted.stem}-{number}{wanted.suffix}"
        return path

    def _save(self) -> None:
        pictures = {
            name: [one.rank, one.n_bytes, one.changed_ns] for name, one in self._written.items()
        }
        write_json(self._path / STATE, {"pictures": pictures})


@contextlib.contextmanager
def bounded_folder(path: Path, limit: Limit) -> Iterator[BoundedFolder]:
    """Context with a folder, created where missing, that no other watch writes to meanwhile.

    Raises:
        InUseError: another watch writes to it.
        DataError: its state file is damaged.
        ResourceError: it cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, path) from error
    with locked(path / _LOCK, remedy="Give each watch a folder of its own."):
        yield BoundedFolder(path, limit)


def as_jpeg(image: Image.Image) -> bytes:
    """Encodes a picture."""
    data = io.BytesIO()
    image.save(data, "JPEG", quality=95)
    return data.getvalue()


def _read_state(path: Path) -> dict[str, _Written]:
    """Name -> picture, of the state file; empty without one."""
    if not path.exists():
        return {}
    found = read_json(path)
    try:
        pictures = found["pictures"].items()
        return {_plain(name): _Written(float(r), int(n), c) for name, (r, n, c) in pictures}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not as `kdedge watch` wrote it.\n"
            "  Delete it: its pictures then stay, and are not counted. Or name another folder."
        ) from error


def _plain(name: str) -> str:
    if Path(name).name != name or name.startswith("."):
        raise ValueError(name)
    return name
