"""Output of all commands: results on stdout, everything else through the logger on stderr."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from shutil import get_terminal_size
from typing import IO, Any, Literal, TypeVar

import click
from click.core import ParameterSource

from kdedge.errors import KdedgeError
from kdedge.progress import is_terminal
from kdedge.records.tables import Table

_T = TypeVar("_T")

LOGGER = "kdedge"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def print_result(record: Any, *, as_json: bool, text: str | None = None) -> None:
    """Prints a command's result on stdout.

    Args:
        record: plain values, or an object with `to_dict`.
        as_json: print the record as one JSON object.
        text: printed if `as_json` is False; None for the tables and notes of a `Tabled` record.
    """
    values = record.to_dict() if hasattr(record, "to_dict") else record
    if as_json:
        click.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))
        return
    if text is None:
        text = "\n\n".join(filter(None, [*map(table_text, record.tables), "\n".join(record.notes)]))
    # Only the last line names the next command
    before, mark, following = text.rpartition("Next:")
    click.echo(f"{before}{colored(mark, 'green', sys.stdout)}{following}")


def show_result(call: Callable[[], _T], show: Callable[[_T], object]) -> _T:
    """Shows the result of a call, or the partial result that its error carries."""
    try:
        result = call()
    except KdedgeError as error:
        if error.result is not None:
            show(error.result)
        raise
    show(result)
    return result


def colored(text: str, color: str, stream: IO[str] | None) -> str:
    """Colors a text if the stream is a terminal with colors and NO_COLOR is not set."""
    has_color = is_terminal(stream) and not os.environ.get("NO_COLOR")
    return click.style(text, fg=color) if text and has_color else text


def next_line(
    *words: str | Path, overrides: Mapping[str, Any] | None = None, given: Collection[str] = ()
) -> str:
    """Returns the line with the command to run next, quoted for a shell.

    Args:
        words: the command, its arguments, and options that this command line does not have.
        overrides: keys of the recipe that it sets.
        given: names of the parameters whose options it repeats if they were given to this command.
    """
    from kdedge.config.load import override_texts

    command = ["kdedge", *map(str, words)]
    for text in override_texts(overrides or {}):
        command += ["--set", text]
    command += given_options(*given)
    return f"Next: {shlex.join(command)}"


def given_options(*names: str) -> list[str]:
    """Returns the options given on this command line, with values, for these parameter names."""
    context = click.get_current_context()
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE and name in names:
            value = context.params[name]
            words.append(option.opts[0])
            if value is not True:
                words.append(str(value))
    return words


def table(rows: Sequence[Sequence[str]], *, header: Sequence[str] = (), align: str = "l") -> str:
    """Lays out the cells of a `Table` as `table_text` does."""
    return table_text(Table("", header, rows, align=align))


def table_text(table: Table) -> str:
    """Lays out a table without its title; text columns wrap where the terminal is narrower."""
    text = str(table)
    n_columns = shown_columns()
    fits = max(map(len, text.split("\n"))) <= n_columns
    return text if fits else _narrow_table(table, n_columns)


def titled(table: Table) -> str:
    """Lays out a table below its title."""
    return f"{table.title}\n{table_text(table)}"


def shown_columns() -> float:
    """Columns of stdout's terminal; infinite if stdout is not a terminal."""
    is_shown = sys.stdout is not None and sys.stdout.isatty()
    return get_terminal_size().columns if is_shown else math.inf


def _narrow_table(table: Table, n_columns: float) -> str:
    """Wraps the text columns of a table, but not the right-aligned numbers."""
    from rich import table as rich_table
    from rich.console import Console
    from rich.text import Text

    grid = rich_table.Table.grid(padding=(0, 2, 0, 0), pad_edge=False)
    for side in table.sides:
        justify: Literal["left", "right"] = "right" if side == "r" else "left"
        grid.add_column(justify=justify, no_wrap=side == "r", overflow="fold")
    for line in table.lines:
        grid.add_row(*map(Text, line))
    console = Console(width=int(n_columns), color_system=None)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


_SHOWS_ALL = "kdedge.cli.shows_all"


def shows_all(context: click.Context) -> bool:
    """Whether the help lists everything, as with --help-all."""
    return bool(context.meta.get(_SHOWS_ALL))


def show_all(context: click.Context, _: click.Parameter | None = None, value: bool = True) -> None:
    """Prints the whole help of a command, as the callback of --help-all."""
    if value and not context.resilient_parsing:
        context.meta[_SHOWS_ALL] = True
        click.echo(context.get_help(), color=context.color)
        context.exit()


help_all_option = click.option(
    "--help-all",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_all,
    help="Show everything and exit.",
)


class Brief(click.Command):
    """A command whose help lists only its most used options; --help-all lists all of them.

    Args:
        first: names of the most used options.
    """

    def __init__(self, *arguments: Any, first: Collection[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._first = {*first, "--help", "--help-all"}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the options."""
        if shows_all(ctx):
            return super().format_options(ctx, formatter)
        shown = [parameter for parameter in self.get_params(ctx) if self._first & {*parameter.opts}]
        rows = [row for option in shown if (row := option.get_help_record(ctx)) is not None]
        with formatter.section("Options"):
            formatter.write_dl(rows)
        return None


def summary_of_module(file: Path) -> str:
    """Returns the first line of a Python file's docstring without importing the file."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]  # since Python 3.11
    """Writes to the current stderr, and each warning only once."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.warned: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write a record."""
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
    """Plain lines for progress, `kdedge: warning: ...` for warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats one line."""
        text = record.getMessage()
        if record.levelno < logging.WARNING:
            return text
        level = f"kdedge: {record.levelname.lower()}:"
        return f"{colored(level, 'yellow', sys.stderr)} {text}"


def set_up_logging() -> logging.Logger:
    """Sends the logger `kdedge` to stderr, from INFO up; every command gets a new handler."""
    logger = logging.getLogger(LOGGER)
    for old in [handler for handler in logger.handlers if isinstance(handler, _StderrHandler)]:
        logger.removeHandler(old)
    handler = _StderrHandler()
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return logger
