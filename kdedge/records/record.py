"""Records on disk: pydantic reads JSON strictly, and its errors become kdedge's messages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from kdedge import __version__
from kdedge.errors import DataError, SetupError
from kdedge.files import MAX_JSON_BYTES, read_bytes

_T = TypeVar("_T")

Percent = Annotated[float, Field(ge=0, le=100)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e18)]
Positive = Annotated[float, Field(gt=0, le=1e18)]
Count = Annotated[int, Field(ge=0, le=10**12)]
PositiveCount = Annotated[int, Field(ge=1, le=10**12)]
Bytes = Annotated[int, Field(ge=0, le=10**18)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Record:
    """Base class of the frozen dataclasses that commands write as JSON and read again.

    A file must hold every field without a default; its other keys are ignored. Types are exact and
    numbers are finite. Values are checked when a file is read, not when Python code makes a record.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Returns the record as plain values for JSON, in field order."""
        return asdict(self, dict_factory=_plain)


def _plain(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in fields}


_adapter = cache(TypeAdapter)  # a record type -> what reads it
_MADE_AGAIN = "Remove it: it is made again."


def read_record(record_type: type[_T], path: Path, *, remedy: str = _MADE_AGAIN) -> _T:
    """Reads a JSON file.

    Args:
        record_type: the type of the whole file: a `Record`, a dictionary of them, or a pydantic
            model.
        path: the file.
        remedy: tells the user what to do about a damaged file; the last line of messages.

    Raises:
        DataError: the file cannot be read, or it does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    data = read_bytes(path, max_bytes=MAX_JSON_BYTES)
    return parse_record(record_type, data, where=str(path), remedy=remedy)


def parse_record(record_type: type[_T], text: str | bytes, *, where: str, remedy: str) -> _T:
    """Reads JSON text.

    Args:
        record_type: the type of the whole text, as for `read_record`.
        text: the JSON.
        where: start of messages: the file, or a name of the record.
        remedy: tells the user what to do about a damaged record; the last line of messages.

    Raises:
        DataError: the text does not hold such a record.
        SetupError: a newer kdedge wrote it.
    """
    try:
        record: _T = _adapter(record_type).validate_json(text, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _explain(error.errors(include_url=False), where, remedy) from error
    return record


def if_readable(read: Callable[..., _T], *arguments: Any) -> _T | None:
    """Calls a function that reads a record.

    Returns:
        The function's result; None, with a warning, if the record is damaged or was written by a
        newer kdedge.
    """
    try:
        return read(*arguments)
    except (DataError, SetupError) as error:
        logging.getLogger(__name__).warning("%s", error)
        return None


def _explain(problems: list[ErrorDetails], where: str, remedy: str) -> DataError | SetupError:
    """Returns the error for a newer format, or for the first problem."""
    for problem in problems:
        if problem["loc"] == ("format",) and problem["type"] == "less_than_equal":
            return SetupError(
                f"{where} was written by a newer kdedge, in format {problem['input']}; kdedge"
                f" {__version__} reads formats up to {problem['ctx']['le']}.\n"
                "  Install the newer kdedge here, from its wheel or its folder."
            )
    problem = problems[0]
    place = f" {'.'.join(map(str, problem['loc']))}:" if problem["loc"] else ""
    if problem["type"] == "json_invalid":
        return DataError(f"{where} is not valid JSON: {problem['ctx']['error']}.\n  {remedy}")
    what = problem["msg"].replace("Value error, ", "Input should be ")
    got = "" if problem["type"] == "missing" else f", got {problem['input']!r:.60}"
    return DataError(f"{where}:{place} {what}{got}.\n  {remedy}")
