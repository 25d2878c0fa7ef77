"""What all commands share: results on stdout, everything else through the logger on stderr."""

from __future__ import annotations

import ast
import json
import logging
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    _StreamHandler = logging.StreamHandler[Any]
else:
    _StreamHandler = logging.StreamHandler  # no generic class before Python 3.11

LOGGER = "kdedge"

_F = TypeVar("_F", bound=Callable[..., Any])


def json_option(function: _F) -> _F:
    """Adds `--json`, given to the command as `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    return option(function)


def set_option(function: _F) -> _F:
    """Adds `--set a.b=c`, given to the command as the tuple `overrides`."""
    option = click.option(
        "--set",
        "overrides",
        metavar="KEY=VALUE",
        multiple=True,
        help="Override a key of the recipe, as in --set student.optim.epochs=10; can be repeated.",
    )
    return option(function)


def print_result(record: Any, *, as_json: bool, text: str | None = None) -> None:
    """Prints a command's result on stdout.

    Args:
        record: plain values, or an object with `to_dict()`.
        as_json: print the record as one JSON object.
        text: what a person reads instead; the record's keys and values when left out.
    """
    values = record.to_dict() if hasattr(record, "to_dict") else record
    if as_json:
        click.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
    elif text is not None:
        click.echo(text)
    else:
        click.echo(table([[key, _cell(value)] for key, value in values.items()], align="ll"))


class FiniteRange(click.FloatRange):
    """A number between two bounds; click's own takes nan, which no comparison refuses."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Converts one option's text."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number.", param, ctx)
        return number


def next_line(command: str, what: str | Path, *options: str) -> str:
    """The line that says which command to run next, quoted for a shell.

    Args:
        command: its name.
        what: its argument, a recipe or a run's folder.
        options: its options, as `same_options` gives them.
    """
    return f"Next: {shlex.join(['kdedge', command, str(what), *options])}"


def same_options(overrides: Sequence[str] = ()) -> list[str]:
    """The `--set` and `--runs` of this command line, for a next command that reads a recipe.

    A run's folder holds what they said already; a recipe does not.
    """
    options = [word for override in overrides for word in ("--set", override)]
    context = click.get_current_context()
    if context.get_parameter_source("root") is ParameterSource.COMMANDLINE:
        options += ["--runs", str(context.params["root"])]
    return options


def table(
    rows: Sequence[Sequence[str]], *, header: Sequence[str] | None = None, align: str = ""
) -> str:
    """Lays out text in aligned columns, two spaces apart.

    Args:
        rows: cells of each row; all rows have the same number.
        header: column titles.
        align: `l` or `r` for each column; `l` where it says nothing.
    """
    lines = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    if not lines:
        return ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    sides = align.ljust(len(widths), "l")
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )


def first_line(file: Path) -> str:
    """The first line of a Python file's docstring, read without importing the file."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def percent(value: float | None) -> str:
    """A percentage with two digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.2f}"


def gibibytes(n_bytes: float) -> str:
    """A number of bytes in GiB with one digit."""
    return f"{n_bytes / 2**30:.1f} GiB"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


class _StderrHandler(_StreamHandler):
    """Writes to whatever stderr is at that moment; a warning once, however often it is given."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.warned: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written."""
        if record.levelno == logging.WARNING:
            text = record.getMessage()
            if text in self.warned:
                return False
            self.warned.add(text)
        return bool(super().filter(record))

    @property
    def stream(self) -> Any:
        """The process's stderr."""
        return sys.stderr


class _Formatter(logging.Formatter):
    """Plain lines for progress, `kdedge: warning: ...` for what needs attention."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats one line."""
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return text
        return f"kdedge: {record.levelname.lower()}: {text}"


def set_up_logging() -> logging.Logger:
    """Sends the logger `kdedge`, from INFO up, to stderr; once more for each command."""
    logger = logging.getLogger(LOGGER)
    for old in [handler for handler in logger.handlers if isinstance(handler, _StderrHandler)]:
        logger.removeHandler(old)
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger
