"""Records on disk: JSON is read strictly, and errors become kdedge's messages.

pydantic's core checks the values. Its schema is made here from frozen dataclasses: importing
pydantic itself would make every start of `kdedge predict` a third longer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic_core import CoreConfig, ErrorDetails, SchemaValidator, ValidationError

from kdedge import __version__
from kdedge.errors import DataError, SetupError
from kdedge.files import read_bytes

_T = TypeVar("_T")


class Bounds(NamedTuple):
    """Annotates a number with its bounds, a text or list with its least length or its pattern."""

    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    min_length: int | None = None
    pattern: str | None = None


class Check(NamedTuple):
    """Annotates a value with a check of its own.

    Attributes:
        function: takes the value, and raises a ValueError whose text says what is expected.
    """

    function: Callable[[Any], None]


class CheckedAs(NamedTuple):
    """Annotates a dictionary that is checked against another type and kept as it was read.

    Attributes:
        kind: the type: a `Shape`, or a dictionary of them.
    """

    kind: Any


@dataclass(frozen=True)
class Shape:
    """Base class of frozen dataclasses that name keys of a dictionary; further keys are allowed."""

    unknown_keys: ClassVar[Literal["forbid", "ignore"]] = "ignore"


OPTIONAL = object()
"""Annotates a field that is not written where it has its default."""


Percent = Annotated[float, Bounds(ge=0, le=100)]
Fraction = Annotated[float, Bounds(ge=0, le=1)]
NonNegative = Annotated[float, Bounds(ge=0, le=1e18)]
Positive = Annotated[float, Bounds(gt=0, le=1e18)]
Count = Annotated[int, Bounds(ge=0, le=10**12)]
PositiveCount = Annotated[int, Bounds(ge=1, le=10**12)]
Bytes = Annotated[int, Bounds(ge=0, le=10**18)]
Sha256 = Annotated[str, Bounds(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Record:
    """Base class of the frozen dataclasses that commands write as JSON and read again.

    A file must hold every field without a default. Types are exact and numbers are finite. Values
    are checked when a file is read, not when Python code makes a record.

    Attributes:
        unknown_keys: whether a file with other keys, as of another version, is refused.
    """

    unknown_keys: ClassVar[Literal["forbid", "ignore"]] = "forbid"

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values for JSON, in field order.

        What is marked `OPTIONAL` is left out where it has its default.
        """
        return {key: _plain(value) for key, value in _written_fields(self)}


def _written_fields(record: Any) -> Iterator[tuple[str, Any]]:
    """Fields of a dataclass and their values, without those that a file would leave out."""
    left_out = _may_be_left_out(record.__class__)
    for entry in fields(record):
        value = getattr(record, entry.name)
        if entry.name not in left_out or value != entry.default:
            yield entry.name, value


@cache
def _may_be_left_out(kind: Any) -> frozenset[str]:
    hints = get_type_hints(kind, include_extras=True).items()
    return frozenset(n for n, hint in hints if OPTIONAL in getattr(hint, "__metadata__", ()))


def _plain(value: Any) -> Any:
    """A field's value as `dataclasses.asdict` gives it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {key: _plain(written_field) for key, written_field in _written_fields(value)}
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def read_record(kind: type[_T], path: Path, *, remedy: str) -> _T:
    """Reads a JSON file.

    Args:
        kind: the type of the whole file: a `Record`, a dictionary of them, or a pydantic model.
        path: the file.
        remedy: tells the user what to do about a damaged file; the last line of messages.

    Raises:
        DataError: the file cannot be read, or it does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    return parse_record(kind, read_bytes(path), where=str(path), remedy=remedy)


def parse_record(kind: type[_T], text: str | bytes, *, where: str, remedy: str) -> _T:
    """Reads JSON text.

    Args:
        kind: the type of the whole text, as for `read_record`.
        text: the JSON.
        where: starts messages: the file, or a name of the record.
        remedy: tells the user what to do about a damaged record; the last line of messages.

    Raises:
        DataError: the text does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    try:
        record: _T = _validator(kind).validate_json(text)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), where, remedy) from error
    return record


def if_readable(read: Callable[..., _T], *arguments: Any) -> _T | None:
    """What a function reads; None, with a warning, if a record is damaged or a newer kdedge's."""
    try:
        return read(*arguments)
    except (DataError, SetupError) as error:
        logging.getLogger(__name__).warning("%s", error)
        return None


@cache
def _validator(kind: Any) -> SchemaValidator:
    validator: SchemaValidator | None = getattr(kind, "__pydantic_validator__", None)
    return validator or SchemaValidator(_schema(kind), _CONFIG)


_CONFIG: CoreConfig = {"strict": True, "allow_inf_nan": False}
_PLAIN = {str: "str", int: "int", float: "float", bool: "bool", Any: "any", NoneType: "none"}


def _schema(kind: Any) -> Any:
    """Returns pydantic-core's schema of a type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _annotated(arguments[0], arguments[1:])
    if origin is Literal:
        return {"type": "literal", "expected": list(arguments)}
    if origin in (Union, UnionType):
        choices = [_schema(choice) for choice in arguments if choice is not NoneType]
        schema = choices[0] if len(choices) == 1 else {"type": "union", "choices": choices}
        return {"type": "nullable", "schema": schema} if NoneType in arguments else schema
    if origin is tuple:
        items = [_schema(item) for item in arguments if item is not ...]
        variadic = {"variadic_item_index": 0} if ... in arguments else {}
        return {"type": "tuple", "items_schema": items, **variadic}
    if origin is list:
        return {"type": "list", "items_schema": _schema(arguments[0])}
    if origin is dict:
        return {"type": "dict", "values_schema": _schema(arguments[1])}
    if is_dataclass(kind):
        return _dataclass_schema(kind)
    return {"type": _PLAIN[kind]}


def _annotated(kind: Any, marks: tuple[Any, ...]) -> Any:
    schema = _schema(kind)
    for mark in marks:
        if isinstance(mark, Bounds):
            schema |= {name: x for name, x in mark._asdict().items() if x is not None}
        elif isinstance(mark, Check):
            function = {"type": "no-info", "function": partial(_keep, check=mark.function)}
            schema = {"type": "function-after", "function": function, "schema": schema}
        elif isinstance(mark, CheckedAs):
            function = {"type": "no-info", "function": _keep}
            schema = {"type": "function-wrap", "function": function, "schema": _schema(mark.kind)}
    return schema


def _keep(value: _T, check: Callable[[_T], object]) -> _T:
    check(value)
    return value


def _dataclass_schema(kind: Any) -> Any:
    is_shape = issubclass(kind, Shape)
    hints = get_type_hints(kind, include_extras=True)
    members = []
    for entry in fields(kind):
        schema = _schema(hints[entry.name])
        if entry.default_factory is not MISSING:
            factory = entry.default_factory
            schema = {"type": "default", "schema": schema, "default_factory": factory}
        elif entry.default is not MISSING or entry.name in _may_be_left_out(kind):
            default = None if entry.default is MISSING else entry.default
            schema = {"type": "default", "schema": schema, "default": default}
        members.append({"type": "dataclass-field", "name": entry.name, "schema": schema})
    arguments = {"type": "dataclass-args", "dataclass_name": kind.__name__, "fields": members}
    return {
        "type": "dataclass",
        "config": _CONFIG,
        "cls": kind,
        "fields": [member["name"] for member in members],
        "schema": {**arguments, "extra_behavior": getattr(kind, "unknown_keys", "forbid")},
        "strict": not is_shape,  # strictly, a dictionary in Python is no dataclass
        "post_init": hasattr(kind, "__post_init__"),
    }


def _explain(problems: list[ErrorDetails], where: str, remedy: str) -> DataError | SetupError:
    """Returns the error for the first problem; a format that is newer comes first."""
    for problem in problems:
        if problem["loc"] == ("format",) and problem["type"] == "less_than_equal":
            return SetupError(
                f"{where} was written by a newer kdedge, in format {problem['input']}; kdedge"
                f" {__version__} reads formats up to {problem['ctx']['le']}.\n"
                "  Install the newer kdedge here, from its wheel or its folder."
            )
    first = problems[0]
    place = f" {'.'.join(map(str, first['loc']))}:" if first["loc"] else ""
    if first["type"] == "json_invalid":
        return DataError(f"{where} is not valid JSON: {first['ctx']['error']}.\n  {remedy}")
    what = first["msg"].replace("Value error, ", "Input should be ")
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
    return DataError(f"{where}:{place} {what}{got}.\n  {remedy}")
