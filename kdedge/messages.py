"""The words of messages: options, similar names, lists that are cut."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from contextvars import ContextVar

ON_COMMAND_LINE = ContextVar("kdedge_on_command_line", default=False)
"""Whether the command line made the call. A new thread knows it from a copy of the context."""


def option(flag: str, argument: str | None = None) -> str:
    """An option in a message: `--batch-size` on the command line, `batch_size` from Python.

    Args:
        flag: the flag, or the flag and its value: `--device cpu` is `device="cpu"` from Python.
        argument: what a caller writes in Python, if it is something else: `resume=True`.
    """
    if ON_COMMAND_LINE.get():
        return flag
    name, _, value = flag.removeprefix("--").partition(" ")
    name = name.replace("-", "_")
    if argument is not None:
        return argument
    return f'{name}="{value}"' if value else name


def same_call() -> str:
    """The beginning of a sentence that asks to repeat the command or the call."""
    return option("Run the same command", "Make the same call")


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, printable and without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = text.strip()
    line = text.splitlines()[0].rstrip(".:") if text else type(error).__name__
    return "".join(c if c.isprintable() else " " for c in line)


def one_line(error: BaseException) -> str:
    """Returns an error's class and the first 300 characters of its message, as one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:300].rstrip(".: ")


def some_of(texts: Iterable[str], most: int = 5) -> list[str]:
    """Returns at most `most` of the texts, followed by `and N more` if there are others."""
    texts = list(texts)
    if len(texts) <= most:
        return texts
    return [*texts[:most], f"and {len(texts) - most:,} more"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name most similar to a name; None if no name is similar."""
    lower = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[matches[0]] if matches else None


def suggestion(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Returns `Did you mean ...?`; if no name is near, `otherwise` or a list of all names."""
    known = list(known)
    guess = nearest(name, known)
    if guess is not None:
        return f"Did you mean {guess}?"
    return f"There are: {', '.join(known)}." if otherwise is None else otherwise


def name_some(names: Iterable[str]) -> str:
    """Returns the first names in quotes, and the number of others."""
    return ", ".join(some_of((f'"{name}"' for name in names), 8))
