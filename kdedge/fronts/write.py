"""Writes a front's files: the record, tables and plots."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from kdedge.files import write_atomic, write_json
from kdedge.fronts.front import Front
from kdedge.fronts.rows import FrontRow
from kdedge.reporting.figures import CostPoint, accuracy_against_cost
from kdedge.reporting.plots import render

_COSTS = {
    "front.svg": ("p50_ms", 1.0, "ms per image at batch 1, median"),
    "front-size.svg": ("n_bytes", 1e6, "MB"),
    "front-gflops.svg": ("gflops", 1.0, "GFLOPs per image"),
}
"""Each plot's file -> its cost: field of the row, unit, name."""


def write_front(folder: Path, front: Front) -> list[str]:
    """Writes front.json, front.md, front.csv and the plots into a folder, each atomically.

    Args:
        folder: the front's folder; files of an earlier front are replaced.
        front: the front.

    Returns:
        The names of the written files.

    Raises:
        ResourceError: they cannot be written.
    """
    contents = {"front.md": to_markdown(front), "front.csv": to_csv(front)}
    files = {name: text.encode() for name, text in contents.items()}
    for name in _COSTS:
        points = _points(front, name)
        if points:
            files[name] = _plot(front, name, points)
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier front
    for name, data in files.items():
        write_atomic(folder / name, data)
    write_json(folder / "front.json", front.to_dict())
    return ["front.json", *files]


def to_markdown(front: Front) -> str:
    """Formats the front as Markdown."""
    header, rows = front.table()
    columns = ["---", "---", *["---:"] * (len(header) - 2)]
    lines = ["| " + " | ".join(map(_escape, row)) + " |" for row in (header, columns, *rows)]
    notes = [f"* {_escape(note)}" for note in front.notes]
    blocks = [f"# {front.suite}", _escape(front.answer), "\n".join(lines), front.caption]
    return "\n\n".join([*blocks, *(["\n".join(notes)] if notes else [])]) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def to_csv(front: Front) -> str:
    """Formats one line per row; figures are not rounded, missing ones are empty."""
    out = io.StringIO()
    rows = [row.to_dict() for row in front.rows]
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _points(front: Front, name: str) -> list[CostPoint]:
    key, unit, _ = _COSTS[name]
    return [
        CostPoint(row.label, _kind(row), getattr(row, key) / unit, row.accuracy)
        for row in front.rows
        if row.accuracy is not None and getattr(row, key)
    ]


def _plot(front: Front, name: str, points: list[CostPoint]) -> bytes:
    accuracy_name = f"{front.accuracy_name}, %"
    cost_name = f"{_COSTS[name][2]} (log scale)"
    draw = accuracy_against_cost(points, accuracy_name=accuracy_name, cost_name=cost_name)
    return render(draw).svg_on_white


def _kind(row: FrontRow) -> str:
    if row.why_unranked is not None:
        return "unranked"
    return "engine" if str(row.file).endswith(".engine") else "file"
