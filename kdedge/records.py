"""Records on disk: pydantic reads JSON strictly, and its errors become kdedge's messages."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    RootModel,
    ValidationError,
)
from pydantic_core import CoreSchema, ErrorDetails, core_schema, from_json

from kdedge import __version__
from kdedge._files import read_bytes
from kdedge.errors import DataError, SetupError

_T = TypeVar("_T")


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("a SHA-256, 64 hexadecimal digits")
    return text


Percent = Annotated[float, Field(ge=0, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e18)]
Positive = Annotated[float, Field(gt=0, le=1e18)]
Count = Annotated[int, Field(ge=0, le=10**12)]
PositiveCount = Annotated[int, Field(ge=1, le=10**12)]
Bytes = Annotated[int, Field(ge=0, le=10**18)]
Sha256 = Annotated[str, AfterValidator(_sha256)]

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
TOLERANT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


@dataclass(frozen=True)
class Record:
    """Base class of the frozen dataclasses that commands write as JSON and read again.

    A file must hold each field that has no default and no other key. Types are exact and numbers
    are finite. Values are checked when a file is read, not when Python code makes a record.
    """

    __pydantic_config__ = STRICT

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values for JSON, in field order."""
        return asdict(self)


@dataclass(frozen=True)
class Holds:
    """Annotates a dictionary that is checked against a TypedDict and kept as it was read.

    Attributes:
        kind: the TypedDict.
    """

    kind: Any

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Returns the schema, for pydantic."""
        return core_schema.no_info_wrap_validator_function(
            _checked_only, handler.generate_schema(self.kind)
        )


def _checked_only(value: _T, check: core_schema.ValidatorFunctionWrapHandler) -> _T:
    check(value)
    return value


def null_as(value: _T, other: object, key: str) -> _T:
    """Returns a value that is null exactly where a related value is null.

    Args:
        value: the value.
        other: the related value.
        key: name of the related value.

    Raises:
        ValueError: one of the two is null and the other is not.
    """
    if (value is None) != (other is None):
        raise ValueError(f"null, as {key} is" if other is None else f"a number, as {key} is one")
    return value


def read_record(kind: type[_T], path: Path, *, remedy: str) -> _T:
    """Reads a JSON file.

    Args:
        kind: the type of the whole file, such as a `Record` or `dict[str, EvalResult]`.
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
        kind: the type of the whole text.
        text: the JSON.
        where: starts messages: the file, or a name of the record.
        remedy: tells the user what to do about a damaged record; the last line of messages.

    Raises:
        DataError: the text does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    try:
        found: _T = _model(kind).model_validate_json(text).root  # type: ignore[arg-type]
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), text, where, remedy) from error
    except DataError as error:  # of a value that checks itself, such as `Preprocess`
        raise DataError(f"{where}: {error}\n  {remedy}") from error
    return found


@cache
def _model(kind: Any) -> type[RootModel[Any]]:
    """Returns a model of a type; a TypeAdapter would take 25 ms more to import."""
    return RootModel[kind]


_MISSING = "missing"
_UNKNOWN = {"unexpected_keyword_argument", "extra_forbidden"}
_NOT_AN_OBJECT = {"dataclass_type", "model_type", "dict_type"}
_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "more than",
    "Input should be ": "",
    "String should match pattern": "a text that matches",
    "Value error, ": "",
}


def _explain(
    problems: list[ErrorDetails], text: str | bytes, where: str, remedy: str
) -> DataError | SetupError:
    """Returns the error for the first place with a problem."""
    kinds = {problem["loc"]: problem for problem in problems}
    if problems[0]["type"] == "json_invalid":
        return DataError(f"{where} is not valid JSON: {problems[0]['ctx']['error']}.\n  {remedy}")
    version = kinds.get(("format",))
    if version is not None and version["type"] == "less_than_equal":
        return SetupError(
            f"{where} was made by a newer kdedge: format {version['input']}, this one"
            f" ({__version__}) reads {version['ctx']['le']}.\n"
            "  Install the newer one here, from its wheel or its folder."
        )
    value = from_json(text)
    places = [_place(problem, value) for problem in problems]
    first = [problem for problem, place in zip(problems, places, strict=True) if place == places[0]]
    said = _say(first)
    name = ": ".join(part for part in (where, places[0]) if part)
    return DataError(f"{name} {said}.\n  {remedy}")


def _place(problem: ErrorDetails, value: Any) -> str:
    """Returns the key path of a problem, as in `files[0].parity`.

    A location also holds names of a union's members, which are no keys, and a missing key.
    """
    path = ""
    location = problem["loc"][:-1] if problem["type"] in _UNKNOWN else problem["loc"]
    for part in location:
        if isinstance(value, dict) and part in value:
            path += f".{part}"
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path += f"[{part}]"
        else:
            continue
        value = value[part]
    return path.removeprefix(".")


def _say(problems: list[ErrorDetails]) -> str:
    """Says what is wrong at one place, after the place's name."""
    missing = [str(one["loc"][-1]) for one in problems if one["type"] == _MISSING]
    if missing:
        return f"has no {', '.join(missing)}"
    unknown = [str(one["loc"][-1]) for one in problems if one["type"] in _UNKNOWN]
    if unknown:
        return f"has unknown keys: {', '.join(unknown)}"
    got = problems[0]["input"]
    shown = "null" if got is None else f"{got!r:.60} ({type(got).__name__})"
    if problems[0]["type"] in _NOT_AN_OBJECT:
        return f"is not a JSON object: got {shown}"
    expected = dict.fromkeys(_expected(one["msg"]) for one in problems)
    return f"is {shown}; expected {' or '.join(expected)}"


def _expected(message: str) -> str:
    for words, ours in _WORDS.items():
        message = message.replace(words, ours)
    return message
