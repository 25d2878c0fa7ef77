"""YAML 1.2 text -> plain values and the line of each key, and plain values -> YAML text.

Values are built from ruamel.yaml's nodes, as its loaders read `2001-01-01` as a date, `1_0` as 10
and `<<` as a merge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import Node, ScalarNode, SequenceNode

from kdedge.errors import RecipeError
from kdedge.messages import option

KeyPath = tuple[str | int, ...]
Scalar = str | int | float | bool | None

MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Lines, commas and brackets of one document: ruamel.yaml reads a few thousand a second."""

_TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep"
_PLAIN_TAG = re.compile(r"tag:yaml\.org,2002:[a-z]+")

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
        """Returns `file:line` of a key or its closest parent; `--set KEY` if it is overridden."""
        override = self.override(path)
        if override is not None:
            return f"{option('--set', 'overrides:')} {dotted(override)}"
        line = self.line(path)
        return f"{self.file}:{line}" if line else self.file

    def override(self, path: Sequence[str | int]) -> KeyPath | None:
        """Returns the key, or its closest parent, that `--set` gave; None if `--set` gave none."""
        return next((key for key in _with_parents(path) if key in self.overrides), None)

    def line(self, path: Sequence[str | int]) -> int:
        """Returns the line of a key in the file, or of its closest parent; 0 if there is none."""
        return next((self.lines[key] for key in _with_parents(path) if key in self.lines), 0)


def _with_parents(path: Sequence[str | int]) -> Iterator[KeyPath]:
    """Yields a key path and those of its parents, the innermost first."""
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
        raise RecipeError(
            f"{name}: there are more than {MAX_VALUES:,} values.\n"
            "  Put long class lists into a text file: classes: {file: classes.txt}"
        )
    reader = _Reader(name, what)
    try:
        root = YAML(typ="safe", pure=True).compose(text)
        value = None if root is None else reader.value(root, ())
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(
            f"{place}: this is not valid YAML: {reason.strip()}.\n"
            "  Check quotes, brackets, the space after each colon, and that the keys of a block"
            " start in one column, after spaces and no tab. Save the file as UTF-8 text."
        ) from error
    except RecursionError as error:
        raise RecipeError(f"{name}: {_TOO_DEEP}.\n  Flatten them.") from error
    return value, LineMap(name, reader.lines)


class _Reader:
    """Converts the nodes of one document to plain values, and notes the line of each key."""

    def __init__(self, name: str, what: str) -> None:
        self._name = name
        self._what = what
        self.lines: dict[KeyPath, int] = {}

    def value(self, node: Node, path: KeyPath) -> Any:
        """The value of the node at a key path."""
        if node.anchor is not None or not _PLAIN_TAG.fullmatch(str(node.tag)):
            problem = f"a {self._what} has no anchors (&), aliases (*) and tags (!)"
            remedy = "Write the value out, or quote text that begins with one of them."
            raise self._error(node, problem, remedy)
        if len(path) > MAX_DEPTH:
            raise self._error(node, _TOO_DEEP, "Flatten them.")
        self.lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, ScalarNode):
            return resolve_scalar(node.value) if node.style is None else node.value
        return {
            self._key(key, path): self.value(item, (*path, key.value)) for key, item in node.value
        }

    def _key(self, node: Node, path: KeyPath) -> str:
        """The key of a mapping at a key path."""
        if not isinstance(node, ScalarNode) or not node.value:
            raise self._error(node, "a key is not a word", "Quote text that begins with { or [.")
        self.value(node, path)
        place = (*path, node.value)
        if place in self.lines:
            problem = f"{dotted(place)} is given twice, first in line {self.lines[place]}"
            raise self._error(node, problem, "Keep one of them.")
        self.lines[place] = node.start_mark.line + 1
        return str(node.value)

    def _error(self, node: Node, problem: str, remedy: str) -> RecipeError:
        return RecipeError(f"{self._name}:{node.start_mark.line + 1}: {problem}.\n  {remedy}")


_UNQUOTED = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./%+-]*")


def dump_yaml(values: dict[str, Any], indent: str = "") -> str:
    """Writes plain values as YAML, which `parse_yaml` reads back as equal values."""
    lines = []
    for key, value in values.items():
        name = f"{indent}{dump_value(key)}:"
        if isinstance(value, dict) and value:
            lines.append(f"{name}\n{dump_yaml(value, f'{indent}  ')}")
        else:
            lines.append(f"{name} {dump_value(value)}\n")
    return "".join(lines)


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
