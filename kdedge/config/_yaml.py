"""YAML 1.2 text -> plain values and the line of each key. Data only: no tags, anchors, aliases."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from kdedge.errors import RecipeError

KeyPath = tuple[str | int, ...]

MAX_DEPTH = 32
MAX_ITEMS = 200_000

# The core schema of YAML 1.2 (section 10.3.2), for plain scalars.
_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]{1,4000}")
_OCTAL = re.compile(r"0o[0-7]{1,4000}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,4000}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(?:inf|Inf|INF)")
_NAN = re.compile(r"\.(?:nan|NaN|NAN)")


@dataclass(frozen=True)
class LineMap:
    """Where each key of a recipe was written.

    Attributes:
        file: the recipe's path as the user gave it.
        lines: key path -> line, from 1.
        overrides: key paths that `--set` gave.
    """

    file: str
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: frozenset[KeyPath] = frozenset()

    def where(self, path: Sequence[str | int]) -> str:
        """Gives `file:line` or `--set a.b` of a key, or of the closest key around it."""
        key = tuple(path)
        while key:
            if key in self.overrides:
                return f"--set {dotted(key)}"
            if key in self.lines:
                return f"{self.file}:{self.lines[key]}"
            key = key[:-1]
        return self.file

    def line(self, path: Sequence[str | int]) -> int:
        """Gives the line that `where` names; 0 where it names none."""
        key = tuple(path)
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 0)


def dotted(path: Sequence[str | int]) -> str:
    """Joins a key path as `--set` takes it."""
    return ".".join(str(part) for part in path)


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """Gives the value of a plain (unquoted) scalar by the core schema of YAML 1.2."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if match := _INF.fullmatch(text):
        return float(f"{match[1]}inf")
    return float("nan") if _NAN.fullmatch(text) else text


def parse_yaml(text: str, *, name: str, what: str = "recipe") -> tuple[Any, LineMap]:
    """Reads one YAML document.

    Args:
        text: the document.
        name: what to call it in messages: a file's path or `--set a.b`.
        what: the kind of document, for messages.

    Returns:
        The value (dict, list, text, number, truth value or None) and its lines.

    Raises:
        RecipeError: the text is not YAML, or holds more than plain data.
    """
    _refuse_tabs(text, name)
    builder = _Builder(name, what)
    parser = YAML(typ="safe", pure=True)
    try:
        value = builder.document(iter(parser.parse(text)))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark is not None else name
        reason = (error.problem or error.context or "it cannot be read").strip()
        raise RecipeError(
            f"{place}: this is not valid YAML: {reason}.\n"
            "  Check quotes, brackets, the space after each colon, and that keys of one block start"
            " in one column."
        ) from error
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(
            f"{name}: this is not valid YAML: {reason}.\n  Save it as plain UTF-8 text."
        ) from error
    return value, LineMap(name, builder.lines)


def _refuse_tabs(text: str, name: str) -> None:
    for number, line in enumerate(text.splitlines(), start=1):
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise RecipeError(
                f"{name}:{number}: the line is indented with a tab.\n"
                "  YAML indents with spaces only; use two for each level."
            )


class _Builder:
    """Makes plain values from parser events."""

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what
        self.lines: dict[KeyPath, int] = {}
        self.n_items = 0

    def document(self, events: Iterator[Event]) -> Any:
        value: Any = None
        n_documents = 0
        for event in events:
            if isinstance(event, DocumentStartEvent):
                n_documents += 1
                if n_documents > 1:
                    raise self._error(event, "a second document begins (---)", "Keep one a file.")
                if event.tags or (event.version and tuple(event.version) != (1, 2)):
                    raise self._error(event, "the file has a YAML directive", "Remove the % lines.")
            elif isinstance(
                event, (AliasEvent, ScalarEvent, MappingStartEvent, SequenceStartEvent)
            ):
                value = self._value(event, events, ())
        return value

    def _value(self, event: Event, events: Iterator[Event], path: KeyPath) -> Any:
        self._refuse_more_than_data(event, path)
        if isinstance(event, ScalarEvent):
            is_plain = event.style is None
            return resolve_scalar(event.value) if is_plain else event.value
        if isinstance(event, MappingStartEvent):
            return self._mapping(events, path)
        return self._sequence(events, path)

    def _mapping(self, events: Iterator[Event], path: KeyPath) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            place = (*path, self._key(event, path))
            key = str(place[-1])
            if key in result:
                raise self._error(
                    event,
                    f"{dotted(place)} is given twice, first in line {self.lines[place]}",
                    "Keep one of them.",
                )
            self.lines[place] = _line(event)
            result[key] = self._value(next(events), events, place)
        return result

    def _sequence(self, events: Iterator[Event], path: KeyPath) -> list[Any]:
        result: list[Any] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            place = (*path, len(result))
            self.lines[place] = _line(event)
            result.append(self._value(event, events, place))
        return result

    def _key(self, event: Event, path: KeyPath) -> str:
        self._refuse_more_than_data(event, path)
        if not isinstance(event, ScalarEvent) or not event.value:
            raise self._error(event, "a key is not a word", "Quote text that begins with { or [.")
        return str(event.value)

    def _refuse_more_than_data(self, event: Event, path: KeyPath) -> None:
        self.n_items += 1
        if isinstance(event, AliasEvent) or getattr(event, "anchor", None) is not None:
            raise self._error(
                event,
                f"a {self.what} has no anchors (&) and aliases (*)",
                "Write the value out, or quote text that begins with one of them.",
            )
        if (tag := getattr(event, "tag", None)) is not None:
            raise self._error(
                event,
                f"a {self.what} has no tags, got {tag}",
                "Write the value without it, or quote text that begins with !.",
            )
        if len(path) > MAX_DEPTH:
            raise self._error(
                event, f"values are nested more than {MAX_DEPTH} deep", "Flatten them."
            )
        if self.n_items > MAX_ITEMS:
            raise self._error(event, f"there are more than {MAX_ITEMS} values", "Use a list file.")

    def _error(self, event: Event, what: str, remedy: str) -> RecipeError:
        return RecipeError(f"{self.name}:{_line(event)}: {what}.\n  {remedy}")


def _line(event: Event) -> int:
    return int(event.start_mark.line) + 1


_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./%+-]*")


def dump_yaml(value: dict[str, Any]) -> str:
    """Writes plain values as YAML that `parse_yaml` reads back as equal ones."""
    return "".join(f"{line}\n" for line in _dump_mapping(value, ""))


def _dump_mapping(mapping: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in mapping.items():
        head = f"{indent}{_dump_scalar(key)}:"
        if isinstance(value, dict) and value:
            yield head
            yield from _dump_mapping(value, f"{indent}  ")
        else:
            yield f"{head} {dump_value(value)}"


def dump_value(value: Any) -> str:
    """Writes a plain value as YAML on one line."""
    if isinstance(value, dict):
        items = (f"{_dump_scalar(str(key))}: {dump_value(item)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(dump_value(item) for item in value) + "]"
    return _dump_scalar(value)


def _dump_scalar(value: str | float | bool | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and isinstance(resolve_scalar(value), str):
            return value
        return '"' + "".join(_escape(character) for character in value) + '"'
    text = repr(value)
    return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(text, text)


def _escape(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    return f"\\U{ord(character):08x}"
