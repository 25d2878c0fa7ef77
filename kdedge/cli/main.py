"""The `kdedge` program: finds and runs a command, turns errors into messages and exit codes.

Nothing heavy is imported here; a command's module is imported when the command runs.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import json
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from kdedge import __version__, torchrun
from kdedge.cli.lazy_group import LazyGroup, commands_of
from kdedge.cli.output import colored, help_all_option, set_up_logging, shows_all
from kdedge.errors import (
    NO_ROOM,
    DataError,
    Interrupted,
    KdedgeError,
    ResourceError,
    Terminated,
    is_out_of_memory,
    is_survived,
    os_reason,
    signum_of,
)
from kdedge.messages import ON_COMMAND_LINE, nearest, one_line

# Errors that a mistyped path can cause
_BAD_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM})
_GROUPS = {
    "Start": ("demo", "init", "check"),
    "Train": ("distill", "teach", "train", "pseudo-label", "suite"),
    "Look": ("runs", "show", "eval", "report"),
    "Deploy": ("export", "classes", "bench", "predict", "compare", "serve", "watch", "verify"),
    "Data": ("data",),
    "Tools": ("doctor", "methods", "schema", "import"),
}
# The commands that lead from a folder of images to a deployed model
_FLOW = (
    "demo", "init", "check", "distill", "eval", "export", "bench", "report", "predict", "serve",
)  # fmt: skip
# The exceptions that `_raise_signal` raised
_RAISED: list[KeyboardInterrupt] = []
_ORDER = [name for names in _GROUPS.values() for name in names]


class _Program(LazyGroup):
    """All commands of `kdedge`, in the order in which a project uses them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order in which a project uses them, then the others sorted."""
        names = super().list_commands(ctx)
        listed = [name for name in _ORDER if name in names]
        return listed + [name for name in names if name not in _ORDER]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists `_FLOW`, or all commands by task."""
        names = self.list_commands(ctx)
        if not shows_all(ctx):
            flow = [name for name in _FLOW if name in names]
            with formatter.section("Commands"):
                formatter.write_dl(self.summaries(flow))
            formatter.write_paragraph()
            formatter.write_text(f"kdedge --help-all lists {len(names) - len(flow)} more.")
            return
        groups = {**_GROUPS, "More": [name for name in names if name not in _ORDER]}
        for title, members in groups.items():
            rows = self.summaries([name for name in members if name in names])
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


_COMMANDS = commands_of(
    "kdedge.cli",
    "kdedge.commands",
    shared=("lazy_group", "main", "options", "output", "results"),
)


@click.group(
    cls=_Program, plugins=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
@help_all_option
@click.version_option(__version__, "--version", message="kdedge %(version)s")
def cli() -> None:
    """Train a small image classifier from unlabeled photos, export it, and measure the cost.

    \b
    See the whole flow:   kdedge demo
    Your own images:      kdedge init NAME --images DIR --classes FILE
    Train the student:    kdedge distill NAME.yaml
    """  # noqa: D301 - in a raw string, click would not see its mark for unwrapped lines
    set_up_logging()


def main() -> NoReturn:
    """Runs the command that the process's arguments name, and exits with its code."""
    signal.signal(signal.SIGTERM, _raise_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, _raise_signal)  # a closed terminal ends a suite's cells, too
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _raise_signal)
    try:
        code = run(sys.argv[1:])
        _leave_signals_to_the_system()
    except KeyboardInterrupt as error:  # after the command, or while its error was reported
        _leave_signals_to_the_system()
        code = 128 + signum_of(error)
    with contextlib.suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        sys.stderr.flush()
    sys.exit(code)


def _raise_signal(signum: int, frame: FrameType | None) -> NoReturn:
    _RAISED.append(KeyboardInterrupt() if signum == signal.SIGINT else Terminated())
    raise _RAISED[-1]


def _leave_signals_to_the_system() -> None:
    """Lets these signals kill the process: nothing would catch their exceptions now."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Writes what stdout's encoding lacks as JSON does, so that JSON lines stay valid."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def run(arguments: Sequence[str]) -> int:
    """Runs the command line after `kdedge`, returns its exit code; messages go to stderr."""
    instruction = os.environ.get("_KDEDGE_COMPLETE")
    if instruction:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "kdedge", "_KDEDGE_COMPLETE", instruction)
    before = ON_COMMAND_LINE.set(True)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be UTF-8
        codecs.register_error("kdedge", _escaped)
        sys.stdout.reconfigure(errors="kdedge")
    try:
        with cli.make_context("kdedge", list(arguments)) as ctx:
            cli.invoke(ctx)
        if sys.stdout is not None:  # None if the shell closed it with >&-
            sys.stdout.flush()
    except BaseException as error:
        return _report(error, arguments, vars(error).get("run_log"))
    finally:
        ON_COMMAND_LINE.reset(before)
    return 0


def _report(error: BaseException, arguments: Sequence[str], run_log: Path | None) -> int:
    """Writes an error's message to stderr and returns the exit code."""
    from_package = not isinstance(error, KdedgeError) or error.__cause__ is not None
    unhandled = [interrupt for interrupt in _RAISED if not is_survived(interrupt)]
    if unhandled and from_package and not isinstance(error, Interrupted | click.exceptions.Exit):
        # Extension modules turn a signal's exception into an error of their own
        error = unhandled[-1]
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, click.NoSuchOption):
        error = _with_hints(error)
    if isinstance(error, click.ClickException):
        error.show(sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in {errno.EPIPE, *NO_ROOM}:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # Discards stdout's buffer, which Python flushes once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):  # stdout's reader has ended (`| head`)
        return 141  # a shell's code for SIGPIPE
    shown = error if isinstance(error, KdedgeError) else _as_kdedge_error(error, arguments, run_log)
    size = torchrun.world_size()
    which = f" (process {torchrun.rank() + 1} of {size})" if size > 1 else ""
    click.echo(f"{colored(f'kdedge{which}:', 'red', sys.stderr)} {shown}", err=True)
    return shown.exit_code


def _as_kdedge_error(
    error: BaseException, arguments: Sequence[str], run_log: Path | None
) -> KdedgeError:
    """The error with a message and an exit code; if it is a bug, its traceback is in a file."""
    if isinstance(error, Terminated) and torchrun.world_size() > 1:
        return Interrupted(
            "interrupted: another process ended, so torchrun ended this one. The message of that"
            " process says why.\n  Run the same command with --resume to continue from the last"
            " checkpoint.",
            signum=signal.SIGTERM,
        )
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("interrupted.", signum=signum_of(error))
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        place = f" while writing {error.filename}" if error.filename else ""
        return ResourceError(f"the disk is full{place}.\n  Free some space and try again.")
    if isinstance(error, OSError) and error.errno in _BAD_PATH and error.filename:
        return DataError(f"{os.fsdecode(error.filename)} cannot be used: {os_reason(error)}.")
    if is_out_of_memory(error):
        return ResourceError(
            f"memory ran out: {one_line(error)}.\n"
            "  Use smaller batches (--set optim.batch_size=4; predict: --batch 1), a smaller"
            " backbone, or close other programs."
        )
    return _as_bug(error, arguments, run_log)


def _with_hints(error: click.NoSuchOption) -> click.NoSuchOption:
    """The error with near names, or with how to set a key of the recipe."""
    hint = ""
    options = [] if error.ctx is None else error.ctx.command.params
    if not error.possibilities and any(one.name == "overrides" for one in options):
        hint = " Set a key of the recipe with --set KEY=VALUE; `kdedge schema` lists the keys."
    # With the hyphens, click takes --json for --precison
    name = error.option_name.strip("-")
    close = [x for x in error.possibilities or () if nearest(name, [x.strip("-")])]
    return click.NoSuchOption(error.option_name, f"{error.message}{hint}", close, error.ctx)


def _as_bug(error: BaseException, arguments: Sequence[str], run_log: Path | None) -> KdedgeError:
    text = (
        f"kdedge {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"kdedge {' '.join(arguments)}\n"
        + "".join(traceback.format_exception(type(error), error, error.__traceback__))
    )
    what = f"this is a bug in kdedge: {one_line(error)}."
    place = None if run_log is None else str(run_log)  # the run has written the traceback there
    if place is None:
        try:
            handle, place = tempfile.mkstemp(prefix="kdedge-crash-", suffix=".log")
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            return KdedgeError(f"{what} Its traceback could not be written:\n{text}")
    return KdedgeError(f"{what} The traceback is in {place}")
