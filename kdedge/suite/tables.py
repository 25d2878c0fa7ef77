"""The table of a suite: mean and standard deviation over seeds, with the paper's figures beside."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kdedge._files import write_atomic, write_json
from kdedge.config.suite import AVERAGE, PaperFigures
from kdedge.methods._sees import Sees
from kdedge.results import harmonic_mean
from kdedge.suite.plan import Cell, Plan
from kdedge.suite.records import Records

FIGURES = ("base", "novel", "harmonic_mean", "all")
_TITLES = {"base": "base", "novel": "novel", "harmonic_mean": "HM", "all": "all"}
_SEEN = {
    "labels": "labels",
    "unlabeled_images": "unlabeled",
    "novel_class_names": "novel names",
}

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Line:
    """A row of the table on one recipe, or on the average of all recipes.

    Attributes:
        recipe: its name, or `average`.
        row: the row's label.
        n_seeds: seeds that are in the figures.
        n_planned: seeds that the suite asks for.
        mean: of base, novel and all over seeds; the harmonic mean is that of the mean base and the
            mean novel accuracy. None where there is no figure.
        std: standard deviation over seeds (n - 1), of the harmonic mean that of the seeds' harmonic
            means; None for fewer than two seeds.
        paper: published figures, if the suite has them.
        sees: what the row's model learns from.
    """

    recipe: str
    row: str
    n_seeds: int
    n_planned: int
    mean: Values
    std: Values
    paper: PaperFigures | None
    sees: Sees


@dataclass(frozen=True)
class Grid:
    """Cells of text, as a table shows them: the first column on the left, others on the right."""

    title: str
    header: list[str]
    rows: list[list[str]]


def make_lines(plan: Plan, records: Records) -> list[Line]:
    """The lines of a suite as far as its cells are finished, recipe by recipe."""
    suite = plan.loaded.suite
    found = {
        (recipe, row.name): _by_seed(plan, records, recipe, row.name)
        for recipe in plan.recipes
        for row in suite.methods
    }
    lines = []
    for recipe in plan.recipes:
        for row in suite.methods:
            n_planned = len(plan.of(recipe, row.name))
            seeds = list(found[recipe, row.name].values())
            lines.append(_line(plan, recipe, row.name, seeds, n_planned))
    if len(plan.recipes) > 1:
        for row in suite.methods:
            n_planned = len(plan.of(plan.recipes[0], row.name))
            seeds = _averages([found[recipe, row.name] for recipe in plan.recipes])
            lines.append(_line(plan, AVERAGE, row.name, seeds, n_planned))
    return lines


def _by_seed(plan: Plan, records: Records, recipe: str, row: str) -> dict[int, Values]:
    """Seed -> accuracies, of the cells that are finished."""
    found: dict[int, Values] = {}
    for cell in plan.of(recipe, row):
        record = records.read(cell)
        if record is not None and record.result is not None:
            result = record.result
            found[cell.seed] = {name: getattr(result, name) for name in FIGURES}
    return found


def _averages(recipes: Sequence[Mapping[int, Values]]) -> list[Values]:
    """For each seed that all recipes have: means over recipes, and the harmonic mean of those.

    Source: the average over data sets in the published tables (arXiv:2403.02781, table 1).
    """
    shared = [seed for seed in recipes[0] if all(seed in found for found in recipes)]
    averages: list[Values] = []
    for seed in shared:
        mean = {name: _mean(found[seed][name] for found in recipes) for name in FIGURES}
        averages.append({**mean, "harmonic_mean": _harmonic_mean(mean)})
    return averages


def _line(plan: Plan, recipe: str, row: str, seeds: Sequence[Values], n_planned: int) -> Line:
    mean = {name: _mean(values[name] for values in seeds) for name in FIGURES}
    mean["harmonic_mean"] = _harmonic_mean(mean)
    std = {name: _std(values[name] for values in seeds) for name in FIGURES}
    paper = plan.loaded.suite.paper
    figures = None if paper is None else paper.figures.get(recipe, {}).get(row)
    sees = plan.of(plan.recipes[0] if recipe == AVERAGE else recipe, row)[0].sees
    return Line(recipe, row, len(seeds), n_planned, mean, std, figures, sees)


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    numbers = [value for value in known if value is not None]
    return statistics.fmean(numbers) if numbers and len(numbers) == len(known) else None


def _std(values: Iterable[float | None]) -> float | None:
    known = list(values)
    numbers = [value for value in known if value is not None]
    return statistics.stdev(numbers) if len(numbers) == len(known) > 1 else None


def _harmonic_mean(values: Values) -> float | None:
    base, novel = values["base"], values["novel"]
    return None if base is None or novel is None else harmonic_mean(base, novel)


def make_grids(plan: Plan, lines: Sequence[Line]) -> list[Grid]:
    """One table a recipe, and one of their average; columns without any figure are left out."""
    recipes = dict.fromkeys(line.recipe for line in lines)
    return [_grid(recipe, [line for line in lines if line.recipe == recipe]) for recipe in recipes]


def _grid(recipe: str, lines: Sequence[Line]) -> Grid:
    ours = [name for name in FIGURES if any(line.mean[name] is not None for line in lines)]
    paper = [name for name in FIGURES if any(_published(line, name) is not None for line in lines)]
    # Rows that learn from the same need no columns to say so
    seen = list(_SEEN) if len({line.sees for line in lines}) > 1 else []
    header = ["method", *(_SEEN[name] for name in seen), *(_TITLES[name] for name in ours), "seeds"]
    header += [f"paper {_TITLES[name]}" for name in paper]
    rows = []
    for line in lines:
        cells = ["yes" if getattr(line.sees, name) else "-" for name in seen]
        cells += [_with_spread(line.mean[name], line.std[name]) for name in ours]
        cells.append(f"{line.n_seeds}" if line.n_seeds == line.n_planned else _part(line))
        cells += [_with_spread(_published(line, name), None) for name in paper]
        rows.append([line.row, *cells])
    return Grid(recipe, header, rows)


def _part(line: Line) -> str:
    return f"{line.n_seeds} of {line.n_planned}"


def _published(line: Line, name: str) -> float | None:
    value: float | None = getattr(line.paper, name) if line.paper is not None else None
    return value


def _with_spread(mean: float | None, std: float | None) -> str:
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def notes(plan: Plan) -> list[str]:
    """What the figures are."""
    paper = plan.loaded.suite.paper
    found = [
        "Accuracies in percent: mean ± standard deviation (n - 1) over seeds. HM: harmonic mean of"
        " the mean base and novel accuracy; its deviation is that of the seeds' harmonic means."
    ]
    if len({cell.sees for cell in plan.cells}) > 1:
        found.append(
            "labels: of few images, the teacher's too. unlabeled: images of all classes, without"
            " labels. novel names: training knows the names of classes without labels."
        )
    return found if paper is None else [*found, f"Paper: {paper.source}"]


def write_tables(plan: Plan, records: Records) -> None:
    """Writes table.md, table.csv and results.json into the suite's folder, each whole."""
    lines = make_lines(plan, records)
    write_atomic(records.folder / "table.md", to_markdown(plan, lines).encode())
    write_atomic(records.folder / "table.csv", to_csv(lines).encode())
    write_json(records.folder / "results.json", to_record(plan, records, lines))


def to_markdown(plan: Plan, lines: Sequence[Line]) -> str:
    """The tables as Markdown."""
    blocks = [f"# {plan.loaded.suite.name}"]
    for grid in make_grids(plan, lines):
        columns = ["---", *["---:"] * (len(grid.header) - 1)]
        table = [grid.header, columns, *grid.rows]
        text = "\n".join("| " + " | ".join(map(_escape, row)) + " |" for row in table)
        blocks += [f"## {grid.title}", text]
    return "\n\n".join([*blocks, *notes(plan)]) + "\n"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|")


def to_csv(lines: Sequence[Line]) -> str:
    """One line a recipe and row, figures unrounded, nothing where there is no figure."""
    names = [column for name in FIGURES for column in (name, f"{name}_std")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    published = [f"paper_{name}" for name in FIGURES]
    writer.writerow(["recipe", "method", *_SEEN, "n_seeds", "n_planned", *names, *published])
    for line in lines:
        ours = [value for name in FIGURES for value in (line.mean[name], line.std[name])]
        paper = [_published(line, name) for name in FIGURES]
        seen = ["yes" if getattr(line.sees, name) else "no" for name in _SEEN]
        row = [line.recipe, line.row, *seen, line.n_seeds, line.n_planned, *ours, *paper]
        writer.writerow(row)
    return out.getvalue()


def to_record(plan: Plan, records: Records, lines: Sequence[Line]) -> dict[str, Any]:
    """Everything as plain values: the lines, and each cell's record."""
    suite = plan.loaded.suite
    return {
        "suite": suite.name,
        "file": str(plan.loaded.path),
        "seeds": list(suite.seeds),
        "paper_source": None if suite.paper is None else suite.paper.source,
        "lines": [
            {**asdict(line), "paper": None if line.paper is None else line.paper.model_dump()}
            for line in lines
        ],
        "cells": [_cell(cell, records) for cell in plan.cells],
    }


def _cell(cell: Cell, records: Records) -> dict[str, Any]:
    record = records.read(cell)
    known = {"recipe": cell.recipe, "row": cell.row, "seed": cell.seed}
    return {**(known if record is None else record.to_dict()), "status": records.state(cell)}
