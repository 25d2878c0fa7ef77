"""Reads sentences that describe the classes from a JSON file, {class name: [sentences]}."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdedge.config.explain import nearest
from kdedge.errors import DataError

_MAX_FILE_BYTES = 1 << 26
_FORM = '  Expected {"class name": ["a sentence", ...], ...}, with every class of the class list.'
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(\s*:)?')


def read_class_texts(path: Path, class_names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Returns each class's sentences, in class-list order, with single blanks.

    Args:
        path: a JSON object in UTF-8.
        class_names: the class list; the file's keys are exactly these names, in any order.

    Raises:
        DataError: the file cannot be read or has another form; a class is unknown, appears twice,
            or has no sentence.
    """
    text = _read(path)
    try:
        # Objects are read as tuples of pairs, to notice a name that appears twice
        value = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: not JSON: {error.msg}, column {error.colno}.\n{_FORM}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be used: {error}.\n{_FORM}") from error
    if not isinstance(value, tuple):
        raise DataError(f"{path} does not hold a JSON object.\n{_FORM}")
    lines = _lines_of_keys(text)
    found: dict[str, tuple[str, ...]] = {}
    for name, sentences in value:
        where = f"{path}:{lines[name][int(name in found)]}"
        if name not in class_names:
            guess = nearest(name, class_names)
            remedy = f"Did you mean {guess}?" if guess else "Keys must be names of the class list."
            raise DataError(f'{where}: "{name}" is not in the class list.\n  {remedy}')
        if name in found:
            raise DataError(f'{where}: "{name}" appears twice.\n  Put its sentences into one list.')
        found[name] = _sentences(sentences, f'{where}: "{name}"')
    missing = [name for name in class_names if name not in found]
    if missing:
        raise DataError(
            f"{path} has no sentences for {len(missing)} of {len(class_names)} classes, first"
            f' "{missing[0]}".\n{_FORM}'
        )
    return tuple(found[name] for name in class_names)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{path} cannot be read: {reason}.\n{_FORM}") from error
    if len(data) > _MAX_FILE_BYTES:
        raise DataError(
            f"{path} is larger than {_MAX_FILE_BYTES >> 20} MiB, too large for sentences about"
            f" classes.\n{_FORM}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{line}: not UTF-8 (byte {data[error.start]:#04x}).\n  Save the file as UTF-8."
        ) from error


def _lines_of_keys(text: str) -> dict[str, list[int]]:
    """Each name before a colon, and its lines in the order of the text."""
    lines: dict[str, list[int]] = {}
    line, end = 1, 0
    for match in _STRING.finditer(text):
        line += text.count("\n", end, match.start())
        end = match.start()
        if match[1] is not None:
            lines.setdefault(json.loads(match[0].removesuffix(match[1])), []).append(line)
    return lines


def _sentences(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else "no list"
        raise DataError(f"{where} has {got}; expected one sentence or more.\n{_FORM}")
    sentences = []
    for number, entry in enumerate(value, 1):
        sentence = " ".join(entry.split()) if isinstance(entry, str) else ""
        if not sentence or not sentence.isprintable():
            raise DataError(
                f"{where}: sentence {number} of {len(value)} is {json.dumps(entry)[:60]}; expected"
                " text."
            )
        sentences.append(sentence)
    return tuple(sentences)
