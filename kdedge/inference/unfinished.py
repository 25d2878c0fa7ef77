"""Continues a file of predictions whose command was interrupted or killed."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kdedge.errors import RecipeError
from kdedge.files import explain_os_error, printable, read_json, write_json


@dataclass(frozen=True)
class UnfinishedLines:
    """A file of predictions that is being written, and a hidden file next to it until its end.

    Attributes:
        output: the file.
        kind: its format.
        made_from: hash of everything that the lines depend on.
    """

    output: Path
    kind: Literal["csv", "jsonl"]
    made_from: str

    @property
    def _marker(self) -> Path:
        return self.output.with_name(f".{self.output.name}.unfinished.json")

    @contextlib.contextmanager
    def until_end(self) -> Iterator[None]:
        """Context in which the hidden file exists; an error or a kill leaves it there.

        Enter it when the file of predictions is open: a command that could not open it must not
        replace another command's hidden file.
        """
        write_json(self._marker, {"made_from": self.made_from})
        try:
            yield
        except BaseException:
            if not (self.output.exists() and self.output.stat().st_size):  # no line was written
                self._marker.unlink(missing_ok=True)
            raise
        self._marker.unlink(missing_ok=True)

    def n_done(self, keys: Sequence[str]) -> int:
        """The number of images with a whole line; a line that was cut off is removed.

        Args:
            keys: of all images, in their order.

        Raises:
            RecipeError: the file is not an unfinished one of the same artifact, images and options,
                or was changed.
            ResourceError: it cannot be read or written.
        """
        if not self._marker.exists():
            raise RecipeError(
                f"{self.output} is not unfinished, and nothing is overwritten.\n"
                "  Name another file, or leave --resume out."
            )
        lines = None
        if read_json(self._marker) == {"made_from": self.made_from}:
            try:
                lines = self._whole_lines()
            except OSError as error:
                raise explain_os_error(error, self.output) from error
            except (ValueError, LookupError, TypeError, csv.Error):
                pass  # a line that was changed
        if lines is None or lines != [printable(key) for key in keys[: len(lines)]]:
            raise RecipeError(
                f"{self.output} was changed, or begun with another artifact, other images or other"
                " options.\n"
                "  Use the same ones, or name another file and leave --resume out."
            )
        return len(lines)

    def _whole_lines(self) -> list[str]:
        """The keys of the whole lines."""
        data = self.output.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.output.open("r+b") as file:
                file.truncate(len(whole))
        text = whole.decode("utf-8")
        if self.kind == "jsonl":
            return [json.loads(line)["image"] for line in text.split("\n")[:-1]]
        return [row[0] for row in csv.reader(io.StringIO(text, newline=""))][1:]
