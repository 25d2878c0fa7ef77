"""Writes a file of predictions, and continues one whose command was interrupted or killed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from kdedge.errors import RecipeError
from kdedge.files import explained, held, new_file, write_json
from kdedge.records.record import read_record


@contextlib.contextmanager
def written_lines(
    path: Path, kind: str, keys: list[str] | None, *, made_from: str, resume: bool
) -> Iterator[tuple[int, Callable[[str], None]]]:
    """Context of a file that gets predictions line by line; it is not kept without lines.

    An error or a kill leaves a hidden file next to one that can be continued.

    Args:
        path: the file, which must be new unless an unfinished one is continued.
        kind: format of the lines.
        keys: of all images, in their order, printable; None: it cannot be continued.
        made_from: hash of everything that the lines depend on.
        resume: continue the file if it exists.

    Yields:
        The number of images that have a line, and a function that writes the next line.

    Raises:
        RecipeError: the file exists; to resume, it is not an unfinished one of the same artifact,
            images and options, or was changed.
        InUseError: another command writes it.
        ResourceError: it cannot be read or written.
    """
    marker = path.with_name(f".{path.name}.unfinished.json")
    continues = resume and path.exists()
    with contextlib.nullcontext() if continues else new_file(path), held(path):
        n_done = 0
        if continues:
            n_done = _n_done(path, kind, keys or [], marker, made_from)
        elif keys is not None:
            write_json(marker, {"made_from": made_from})
        with explained(path):
            file = path.open("ab", buffering=0)

        def write(line: str) -> None:
            data = f"{line}\n".encode()
            with explained(path):
                while data:
                    data = data[file.write(data) :]

        with file:
            try:
                yield n_done, write
                marker.unlink(missing_ok=True)
            finally:
                if not path.stat().st_size:
                    marker.unlink(missing_ok=True)


def _n_done(path: Path, kind: str, keys: list[str], marker: Path, made_from: str) -> int:
    """The number of images with a whole line; a line that was cut off is removed."""
    if not marker.exists():
        raise RecipeError(
            f"{path} is not unfinished, and nothing is overwritten.\n"
            "  Name another file, or leave --resume out."
        )
    with explained(path):
        data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    lines = None
    if read_record(dict[str, str], marker) == {"made_from": made_from}:
        with contextlib.suppress(ValueError, LookupError, TypeError, csv.Error):  # was changed
            text = whole.decode()
            if kind == "jsonl":
                lines = [json.loads(line)["image"] for line in text.split("\n")[:-1]]
            else:
                lines = [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
    if lines is None or lines != keys[: len(lines)]:
        raise RecipeError(
            f"{path} was changed, or begun with another artifact, other images or other options.\n"
            "  Use the same ones, or name another file and leave --resume out."
        )
    with explained(path):
        os.truncate(path, len(whole) if lines else 0)
    return len(lines)
