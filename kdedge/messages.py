"""The words of messages: flags or Python's arguments, similar names, lists that are cut."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Iterable
from contextvars import ContextVar

ON_COMMAND_LINE = ContextVar("kdedge_on_command_line", default=False)
"""Whether the command line made the call: messages then name flags, else Python's arguments."""

_SAME_NAME = (
    "against backend batch-size browser calibrate classes config cpu data device drift epochs exact"
    " file fp16 head images int8 int8-minutes keep-teacher labeled labels lr max-megabytes method"
    " min-score none-of-these open-classes output pixels port precision resume size student teacher"
    " test threads triton weights"
)
# Flag -> argument of the public function; messages keep flags that have no argument
_ARGUMENTS = {"set": "overrides:", "runs": "root", "from": "run", "as": "kind"} | {
    flag: flag.replace("-", "_") for flag in _SAME_NAME.split()
}
# The flags of kdedge's own targets, whose modules are not loaded here
_TARGETS = {"trt": "tensorrt", "trt-rtx": "tensorrt-rtx", "torch-trt": "torch-tensorrt"}
_TARGETS |= {"with-preprocess": "onnx-image"}
_TARGETS |= {name: name for name in ("coreml", "executorch", "litert", "onnx", "openvino")}
_ARGUMENTS |= {flag: f'targets=["{name}"]' for flag, name in _TARGETS.items()}

_MAX_NAMED = 8
_FLAG = re.compile(rf"`.*?`|\bkdedge \w+ .*|(?<![^\s(])--({'|'.join(_ARGUMENTS)})\b(?!-)")


def in_words_of_caller(text: str) -> str:
    """A message for a call from Python, in which `--device` becomes the argument `device`."""
    if ON_COMMAND_LINE.get():
        return text
    return _FLAG.sub(lambda match: _ARGUMENTS.get(match[1], match[0]), text)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module of kdedge; its lines are written by `in_words_of_caller`."""
    logger = logging.getLogger(name)
    logger.addFilter(_in_words_of_caller)
    return logger


def _in_words_of_caller(record: logging.LogRecord) -> bool:
    record.msg, record.args = in_words_of_caller(record.getMessage()), ()
    return True


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, printable and without a full stop."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = text.strip().splitlines()[0].rstrip(".:") if text.strip() else type(error).__name__
    return "".join(c if c.isprintable() else " " for c in line)


def one_line(error: BaseException) -> str:
    """Returns an error's class and the first 300 characters of its message, as one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:300].rstrip(".: ")


def some_of(texts: Iterable[str], most: int) -> list[str]:
    """Returns at most `most` of the texts, followed by `and N more` if there are others."""
    texts = list(texts)
    return texts[:most] + ([f"and {len(texts) - most:,} more"] if len(texts) > most else [])


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
    return ", ".join(some_of((f'"{name}"' for name in names), _MAX_NAMED))
