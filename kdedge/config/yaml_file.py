"""YAML 1.2 text -> plain values and the line of each key, and plain values -> YAML text.

Values are built from ruamel.yaml's events and not by its round-trip loader, which has line numbers
too. That loader recurses without a limit, gives no line of the first of two equal keys, and reads
`2001-01-01` as a date, `1_0` as 10 and `<<` as a merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
)

from kdedge.errors import RecipeError

KeyPath = tuple[str | int, ...]
Scalar = str | int | float | bool | None

MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Values of one document; its lines, commas and brackets are limited before it is parsed."""

# The core schema of YAML 1.2 (section 10.3.2) for plain scalars
_CORE_SCHEMA: tuple[tuple[str, Callable[[str], Scalar]], ...] = (
    ("~|null|Null|NULL|", lambda _: None),
    ("true|True|TRUE", lambda _: True),
    ("false|False|FALSE", lambda _: False),
    ("[-+]?[0-9]{1,4000}", int),
    ("0o[0-7]{1,4000}", lambda text: int(text, 8)),
    ("0x[0-9a-fA-F]{1,4000}", lambda text: int(text, 16)),
    (r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", float),
    (r"[-+]?\.(?:inf|Inf|INF)", lambda text: float(text.replace(".", ""))),
    (r"\.(?:nan|NaN|NAN)", lambda _: math.nan),
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN_SCALARS = [(re.compile(pattern), read) for pattern, read in _CORE_SCHEMA]


@dataclass(frozen=True)
class LineMap:
    """The line of each key in a file.

    Attributes:
        file: the path as the user gave it.
        lines: key path -> line, from 1.
        overrides: key paths that `--set` gave.
    """

    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: frozenset[KeyPath] = frozenset()

    def where(self, path: Sequence[str | int]) -> str:
        """Returns `file:line` of a key or of the closest around it; of an override its name."""
        override = self.override(path)
        if override is not None:
            return f"--set {dotted(override)}"
        line = self.line(path)
        return f"{self.file}:{line}" if line else self.file

    def override(self, path: Sequence[str | int]) -> KeyPath | None:
        """Returns the key that `--set` gave and that holds this one, or is it; None if none is."""
        return next((key for key in _around(path) if key in self.overrides), None)

    def line(self, path: Sequence[str | int]) -> int:
        """Returns the line of a key in the file, or of the closest key around it; 0 for neither."""
        return next((self.lines[key] for key in _around(path) if key in self.lines), 0)


def _around(path: Sequence[str | int]) -> Iterator[KeyPath]:
    """A key and those that hold it, from the inside out."""
    return (tuple(path[:n_parts]) for n_parts in range(len(path), 0, -1))


def dotted(path: Sequence[str | int]) -> str:
    """Writes a key path as `--set` takes it: `student.optim.lr`."""
    return ".".join(str(part) for part in path)


def resolve_scalar(text: str) -> Scalar:
    """Returns the value of a plain (unquoted) scalar."""
    return next((read(text) for form, read in _PLAIN_SCALARS if form.fullmatch(text)), text)


def parse_yaml(text: str, *, name: str, what: str = "recipe") -> tuple[Any, LineMap]:
    """Reads one YAML document of plain data: no tags, anchors, aliases or directives.

    Args:
        text: the document.
        name: the file's path or `--set a.b`, for messages.
        what: the kind of document, for messages.

    Returns:
        The value (dict, list, str, int, float, bool or None) and the lines of its keys.

    Raises:
        RecipeError: the text is not YAML, is not plain data, is too large or nested too deeply.
    """
    if len(text.splitlines()) - 1 + sum(map(text.count, ",[{")) > MAX_VALUES:
        raise _too_many(name)
    builder = _Builder(name, what)
    try:
        value = builder.document(iter(YAML(typ="safe", pure=True).parse(text)))
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(
            f"{place}: this is not valid YAML: {reason.strip()}.\n"
            "  Check quotes, brackets, the space after each colon, and that the keys of a block"
            " start in one column, after spaces and no tab. Save the file as UTF-8 text."
        ) from error
    return value, LineMap(name, builder.lines)


def _too_many(place: str) -> RecipeError:
    return RecipeError(
        f"{place}: there are more than {MAX_VALUES:,} values.\n"
        "  Put long class lists into a text file: classes: {file: classes.txt}"
    )


class _Builder:
    """Builds plain values from parser events and notes the line of each key."""

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what
        self.lines: dict[KeyPath, int] = {}
        self.n_values = 0

    def document(self, events: Iterator[Event]) -> Any:
        value: Any = None
        n_documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                n_documents += 1
                if n_documents > 1:
                    raise self._error(
                        event, "a second document begins (---)", "Keep one document per file."
                    )
            elif isinstance(event, NodeEvent):
                value = self._value(event, events, ())
        return value

    def _value(self, event: Event, events: Iterator[Event], path: KeyPath) -> Any:
        self._check_plain(event, path)
        if isinstance(event, ScalarEvent):
            return resolve_scalar(event.value) if event.style is None else event.value
        if isinstance(event, MappingStartEvent):
            return self._mapping(events, path)
        values: list[Any] = []
        while not isinstance(event := next(events), SequenceEndEvent):
            place = (*path, len(values))
            self.lines[place] = _line(event)
            values.append(self._value(event, events, place))
        return values

    def _mapping(self, events: Iterator[Event], path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(events), MappingEndEvent):
            self._check_plain(event, path)
            if not isinstance(event, ScalarEvent) or not event.value:
                raise self._error(
                    event, "a key is not a word", "Quote text that begins with { or [."
                )
            key = str(event.value)
            place = (*path, key)
            if key in values:
                first = f"{dotted(place)} is given twice, first in line {self.lines[place]}"
                raise self._error(event, first, "Keep one of them.")
            self.lines[place] = _line(event)
            values[key] = self._value(next(events), events, place)
        return values

    def _check_plain(self, event: Event, path: KeyPath) -> None:
        self.n_values += 1
        given = (getattr(event, "anchor", None), getattr(event, "tag", None))
        if isinstance(event, AliasEvent) or given != (None, None):
            what = f"a {self.what} has no anchors (&), aliases (*) and tags (!)"
            remedy = "Write the value out, or quote text that begins with one of them."
            raise self._error(event, what, remedy)
        if _SURROGATE.search(getattr(event, "value", None) or ""):
            what = "a text holds half of a character (a surrogate)"
            raise self._error(event, what, "Write the character itself.")
        if len(path) > MAX_DEPTH:
            what = f"values are nested more than {MAX_DEPTH} deep"
            raise self._error(event, what, "Flatten them.")
        if self.n_values > MAX_VALUES:
            raise _too_many(f"{self.name}:{_line(event)}")

    def _error(self, event: Event, what: str, remedy: str) -> RecipeError:
        return RecipeError(f"{self.name}:{_line(event)}: {what}.\n  {remedy}")


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


_UNQUOTED = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./%+-]*")


def dump_yaml(values: dict[str, Any]) -> str:
    """Writes plain values as YAML that `parse_yaml` reads back as equal ones."""
    return "".join(f"{line}\n" for line in _dump_mapping(values, ""))


def _dump_mapping(values: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        head = f"{indent}{dump_value(key)}:"
        if isinstance(value, dict) and value:
            yield head
            yield from _dump_mapping(value, f"{indent}  ")
        else:
            yield f"{head} {dump_value(value)}"


def dump_value(value: Any) -> str:
    """Writes a plain value as YAML on one line."""
    if isinstance(value, dict):
        items = (f"{dump_value(str(key))}: {dump_value(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dump_value, value)) + "]"
    if isinstance(value, str):
        if _UNQUOTED.fullmatch(value) and isinstance(resolve_scalar(value), str):
            return value
        return '"' + "".join(map(_escape, value)) + '"'
    words = {"None": "null", "True": "true", "False": "false"}
    words |= {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}
    return words.get(repr(value), repr(value))


def _escape(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    return character if character.isprintable() else f"\\U{ord(character):08x}"
