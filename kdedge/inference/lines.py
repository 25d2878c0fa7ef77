"""Formats predictions as lines of text, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from kdedge.files import printable
from kdedge.inference.results import Prediction, Result, best_name
from kdedge.runtime.preprocess import UnreadableImage

FORMATS = ("text", "csv", "jsonl")
_MAX_KEY_COLUMN = 60


class ColumnWidths(NamedTuple):
    """Widths of the columns of text on a terminal; 0 for no column."""

    keys: int
    class_names: int


NO_COLUMNS = ColumnWidths(0, 0)


@dataclass(frozen=True)
class Lines:
    """Formats predictions as lines.

    Attributes:
        kind: one of `FORMATS`.
        top: classes per image.
        min_score: percent; below it the best class is not named.
        columns: for text, the widths to which cells are padded.
        tells_none: whether the artifact can tell that an image shows none of its classes.
    """

    kind: str
    top: int
    min_score: float | None
    columns: ColumnWidths = NO_COLUMNS
    tells_none: bool = False

    def heading(self) -> str | None:
        """The first line, where the format has one."""
        if self.kind != "csv":
            return None
        names = ["image", "class", "score_percent"]
        for rank in range(2, self.top + 1):
            names += [f"class_{rank}", f"score_percent_{rank}"]
        if self.tells_none:
            names.append("known_percent")
        return _csv_row([*names, "error"])

    def line(self, result: Result) -> str:
        """The line of one image."""
        if self.kind == "csv":
            return self._csv(result)
        if self.kind == "jsonl":
            return json.dumps(result_values(result, self.min_score), ensure_ascii=False)
        return self._text(result)

    def _text(self, result: Result) -> str:
        key = visible(result.key).ljust(self.columns.keys)
        if not isinstance(result, Prediction):
            what = "unreadable" if isinstance(result, UnreadableImage) else "no prediction"
            return f"{key}  {what}: {result.reason}"
        name_width = self.columns.class_names
        score_width = 8 if name_width else 0
        has_score_column = score_width > 0 and result.is_none
        cells = [key]
        for name, score in shown_classes(result, self.min_score):
            cells.append(name.ljust(name_width))
            if score or has_score_column:
                cells.append(score.rjust(score_width))
        return "  ".join(cells).rstrip()

    def _csv(self, result: Result) -> str:
        cells = []
        known = ""
        error = ""
        if isinstance(result, Prediction):
            for name, percent in ranked(result, self.min_score):
                cells += [name or "", "" if percent is None else f"{percent:.4f}"]
            if result.known_percent is not None:
                known = f"{result.known_percent:.4f}"
        else:
            error = result.reason
        while len(cells) < 2 * self.top:  # a name and a score each
            cells.append("")
        if self.tells_none:
            cells.append(known)
        return _csv_row([printable(result.key), *cells, error])


def column_widths(keys: Sequence[str], class_names: Sequence[str]) -> ColumnWidths:
    """The widths of keys and class names that align text on a terminal."""
    longest = max((len(visible(key)) for key in keys), default=0)
    return ColumnWidths(
        keys=min(longest, _MAX_KEY_COLUMN),
        class_names=max(len(visible(name)) for name in class_names),
    )


def prediction_values(result: Prediction, min_score: float | None) -> dict[str, Any]:
    """The classes of an image, as values for JSON."""
    values: dict[str, Any] = {
        "class": best_name(result, min_score),
        "score_percent": result.score_percent,
    }
    if result.known_percent is not None:
        values["is_none"] = result.is_none
        values["known_percent"] = result.known_percent
    values["top"] = [
        {"class": one.class_name, "score_percent": one.score_percent} for one in result.top
    ]
    return values


def result_values(result: Result, min_score: float | None) -> dict[str, Any]:
    """An image's key, and its classes or why it has none, as values for JSON."""
    values: dict[str, Any] = {"image": printable(result.key)}
    if not isinstance(result, Prediction):
        return values | {"error": result.reason}
    return values | prediction_values(result, min_score)


def ranked(result: Prediction, min_score: float | None) -> list[tuple[str | None, float | None]]:
    """The classes of a prediction and their scores in percent, the predicted class first."""
    others = result.top[:-1] if result.is_none else result.top[1:]
    return [(best_name(result, min_score), result.score_percent), *others]


def shown_classes(prediction: Prediction, min_score: float | None) -> list[tuple[str, str]]:
    """The classes of a prediction and their scores as text, the predicted class first."""
    return [
        ("-" if name is None else visible(name), "" if score is None else f"{score:.2f} %")
        for name, score in ranked(prediction, min_score)
    ]


def _csv_row(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(cells)
    return text.getvalue().removesuffix("\r\n")  # a terminator of csv, so that it quotes both


def visible(name: str) -> str:
    """Puts a key or a class name on one line, without terminal control characters."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in printable(name)
    )
