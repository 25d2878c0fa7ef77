"""Strict reading of JSON objects: keys and types are checked before use."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from kdedge.errors import DataError

_T = TypeVar("_T")


class Record:
    """A JSON object and the place that it came from.

    Args:
        value: what was read.
        where: what messages begin with: the file, or what the whole record is.
        key: the object's own place in it, as in `files[0]`; empty for the whole.
        remedy: what to do about a record that is not as it should be, as the last line of messages.

    Raises:
        DataError: the value is not an object. All methods raise it for what they do not find.
    """

    def __init__(self, value: object, where: str, *, key: str = "", remedy: str) -> None:
        self.where, self._key, self._remedy = where, key, remedy
        if not isinstance(value, dict):
            raise DataError(
                f"{self._whole()} is not a JSON object: got {_kind(value)}.\n  {remedy}"
            )
        self.values: dict[str, Any] = value

    def error(self, key: str, value: object, expected: str) -> DataError:
        """The error for a key's value."""
        return DataError(
            f"{self.where}: {self._place(key)} is {_kind(value)}; expected {expected}.\n"
            f"  {self._remedy}"
        )

    def check_keys(self, *known: str) -> None:
        """Refuses an object that lacks a key or has another one."""
        missing = [key for key in known if key not in self.values]
        unknown = [key for key in self.values if key not in known]
        if missing or unknown:
            what = f"has no {', '.join(missing)}" if missing else f"has {', '.join(unknown)}"
            expected = "" if missing else ", which nothing here reads"
            raise DataError(f"{self._whole()} {what}{expected}.\n  {self._remedy}")

    def text(self, key: str) -> str:
        """A string."""
        value = self.values.get(key)
        if not isinstance(value, str):
            raise self.error(key, value, "a text")
        return value

    def sha256(self, key: str) -> str:
        """A SHA-256 in hex."""
        value = self.text(key)
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise self.error(key, value, "a SHA-256, 64 hexadecimal digits")
        return value

    def count(self, key: str, *, lowest: int = 1, highest: int | None = None) -> int:
        """A whole number between two, both included."""
        value: Any = self.values.get(key)
        is_count = isinstance(value, int) and not isinstance(value, bool)
        if not is_count or value < lowest or (highest is not None and value > highest):
            bound = "" if highest is None else f" and at most {highest}"
            raise self.error(key, value, f"a whole number of at least {lowest}{bound}")
        return int(value)

    def number(self, key: str, *, lowest: int = 0, highest: int = 100) -> float:
        """A number between two, both included; a percentage where nothing else is said."""
        value: Any = self.values.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= highest:  # which NaN is not either
            kind = "a percentage" if (lowest, highest) == (0, 100) else "a number"
            raise self.error(key, value, f"{kind} from {lowest} to {highest}")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false."""
        value: Any = self.values.get(key)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def null(self, key: str, *, lowest: int = 0, highest: int = 100) -> None:
        """Null, in the place of a `number`."""
        del lowest, highest
        if self.values.get(key) is not None:
            raise self.error(key, self.values[key], "null, as in the keys that belong to it")

    def one_of(self, key: str, known: Sequence[str]) -> Any:
        """One of a few strings."""
        value = self.values.get(key)
        if value not in known:
            raise self.error(key, value, " or ".join(known))
        return value

    def optional(self, key: str, read: Callable[[str], _T]) -> _T | None:
        """What `read` gives for the key, or None where it holds null."""
        return None if self.values.get(key) is None else read(key)

    def sequence(self, key: str) -> list[Any]:
        """A list."""
        value = self.values.get(key)
        if not isinstance(value, list):
            raise self.error(key, value, "a list")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object with keys of its own."""
        return self.record(key).values

    def record(self, key: str) -> Record:
        """An object, to be read as strictly."""
        return self._inner(self.values.get(key), self._place(key))

    def records(self, key: str) -> list[Record]:
        """A list of objects."""
        return [
            self._inner(value, f"{self._place(key)}[{i}]")
            for i, value in enumerate(self.sequence(key))
        ]

    def _inner(self, value: object, key: str) -> Record:
        return Record(value, self.where, key=key, remedy=self._remedy)

    def _place(self, key: str) -> str:
        return f"{self._key}.{key}" if self._key else key

    def _whole(self) -> str:
        return f"{self.where}: {self._key}" if self._key else self.where


def _kind(value: object) -> str:
    return "null" if value is None else f"{value!r:.60} ({type(value).__name__})"
