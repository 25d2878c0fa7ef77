"""The tables of a suite: mean and standard deviation over seeds, next to the paper's figures."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kdedge.files import write_atomic, write_json
from kdedge.methods.registry import DataNeeds
from kdedge.paper.suite.plan import Cell, Plan
from kdedge.paper.suite.spec import AVERAGE, PaperFigures
from kdedge.paper.suite.state import Outcome
from kdedge.records.evaluation import harmonic_mean
from kdedge.records.tables import Table

# Mark after the label of a row whose recipe has `official: true`
OFFICIAL_MARK = "†"

_TITLES = {
    "base": "base",
    "novel": "novel",
    "harmonic_mean": "HM",
    "all": "all",
    "mean_over_classes": "mean over classes",
}
FIGURES = tuple(_TITLES)

_SEEN = {
    "labels": "labels",
    "unlabeled_images": "unlabeled",
    "novel_class_names": "novel names",
}

Values = Mapping[str, float | None]
# The outcome of every cell of a plan
Outcomes = Mapping[Cell, Outcome]


@dataclass(frozen=True)
class Line:
    """A row of the table for one recipe, or for the average of all recipes.

    Attributes:
        recipe: the recipe's name, or `average`.
        row: the row's label.
        n_seeds: number of finished seeds.
        n_planned: number of seeds in the suite.
        mean: means over seeds, by figure; the harmonic mean is taken of the mean base and the mean
            novel accuracy. None if a figure is missing.
        std: standard deviations over seeds (n - 1); for the harmonic mean, the deviation of
            the seeds' harmonic means. None for fewer than two seeds.
        paper: published figures; None if the suite has none.
        sees: data that the row's model learns from.
        is_official: whether one of its recipes has `official: true`.
    """

    recipe: str
    row: str
    n_seeds: int
    n_planned: int
    mean: Values
    std: Values
    paper: PaperFigures | None
    sees: DataNeeds
    is_official: bool

    @property
    def label(self) -> str:
        """The row's label with its mark."""
        return f"{self.row} {OFFICIAL_MARK}" if self.is_official else self.row


def make_lines(plan: Plan, outcomes: Outcomes) -> list[Line]:
    """The lines of a suite from its finished cells, recipe by recipe."""
    suite = plan.loaded.suite
    by_row: dict[tuple[str, str], dict[int, Values]] = {}
    for recipe, row in itertools.product((*plan.sources, *plan.recipes), suite.methods):
        if cells := plan.of(recipe, row.name):
            results = {cell.seed: outcomes[cell].result for cell in cells}
            by_row[recipe, row.name] = {
                seed: {name: getattr(result, name) for name in FIGURES}
                for seed, result in results.items()
                if result is not None
            }
    lines = [_line(plan, *key, [*seeds.values()]) for key, seeds in by_row.items()]
    if len(plan.recipes) > 1:
        for row in suite.methods:
            recipes = [by_row[recipe, row.name] for recipe in plan.recipes]
            # As in published tables (arXiv:2403.02781, table 1): of each seed that all recipes have
            shared = [seed for seed in recipes[0] if all(seed in recipe for recipe in recipes)]
            averages = [_means([recipe[seed] for recipe in recipes]) for seed in shared]
            lines.append(_line(plan, AVERAGE, row.name, averages))
    return lines


def _line(plan: Plan, recipe: str, row: str, seeds: Sequence[Values]) -> Line:
    """The line of a row on a recipe, from the results of its seeds."""
    std = {name: _over(stdev, seeds, name, least=2) for name in FIGURES}
    paper = plan.loaded.suite.paper
    figures = None if paper is None else paper.figures.get(recipe, {}).get(row)
    planned = plan.of(plan.recipes[0] if recipe == AVERAGE else recipe, row)
    cells = plan.cells if recipe == AVERAGE else planned
    return Line(
        recipe=recipe,
        row=row,
        n_seeds=len(seeds),
        n_planned=len(planned),
        mean=_means(seeds),
        std=std,
        paper=figures,
        sees=planned[0].sees,
        is_official=any(cell.is_official for cell in cells if cell.row == row),
    )


def _over(
    statistic: Callable[[list[float]], float], rows: Sequence[Values], name: str, *, least: int = 1
) -> float | None:
    """A statistic of a figure; None if a row lacks it, or there are fewer than `least` rows."""
    values = [value for row in rows if (value := row[name]) is not None]
    return statistic(values) if len(values) == len(rows) >= least else None


def _means(rows: Sequence[Values]) -> Values:
    """The mean of each figure; the harmonic mean is of the mean base and novel accuracy."""
    means = {name: _over(fmean, rows, name) for name in FIGURES}
    base = means["base"]
    novel = means["novel"]
    means["harmonic_mean"] = None if base is None or novel is None else harmonic_mean(base, novel)
    return means


def make_tables(lines: Sequence[Line]) -> list[Table]:
    """One table per recipe and one for their average, each without empty columns."""
    recipes = dict.fromkeys(line.recipe for line in lines)
    return [_table(recipe, [line for line in lines if line.recipe == recipe]) for recipe in recipes]


def _table(recipe: str, lines: Sequence[Line]) -> Table:
    """The table of one recipe, or of the average."""
    own = [name for name in FIGURES if any(line.mean[name] is not None for line in lines)]
    if all(
        _with_spread(line.mean["all"], None) == _with_spread(line.mean["mean_over_classes"], None)
        for line in lines
    ):
        own = [name for name in own if name != "mean_over_classes"]
    paper = [name for name in FIGURES if any(_published(line, name) is not None for line in lines)]
    # Columns about the data are left out if all rows learn from the same data
    data = list(_SEEN) if len({line.sees for line in lines}) > 1 else []
    header = ["method", *(_SEEN[name] for name in data), *(_TITLES[name] for name in own), "seeds"]
    header += [f"paper {_TITLES[name]}" for name in paper]
    rows = []
    for line in lines:
        cells = ["yes" if getattr(line.sees, name) else "-" for name in data]
        cells += [_with_spread(line.mean[name], line.std[name]) for name in own]
        suffix = "" if line.n_seeds == line.n_planned else f" of {line.n_planned}"
        cells.append(f"{line.n_seeds}{suffix}")
        cells += [_with_spread(_published(line, name), None) for name in paper]
        rows.append([line.label, *cells])
    return Table(recipe, header, rows)


def _published(line: Line, name: str) -> float | None:
    """A published figure; None if the suite has none."""
    return getattr(line.paper, name, None)


def _with_spread(mean: float | None, std: float | None) -> str:
    """Formats a mean with its standard deviation, if there is one."""
    if mean is None:
        return "-"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def notes(plan: Plan) -> list[str]:
    """Lines below the tables that explain the figures."""
    paper = plan.loaded.suite.paper
    texts = [
        "Accuracies in percent: mean ± standard deviation (n - 1) over seeds. HM: harmonic mean of"
        " the mean base and novel accuracy; the deviation is over the seeds' harmonic means."
    ]
    if len({cell.sees for cell in plan.cells}) > 1:
        texts.append(
            "labels: few labeled images, the teacher's too. unlabeled: images of all classes,"
            " without labels. novel names: training knows the names of classes without labels."
        )
    if any(cell.is_official for cell in plan.cells):
        texts.append(
            f"{OFFICIAL_MARK} official: true, as in PromptKD's public code; epochs of students"
            " are chosen on the test images. Do not compare these rows with others."
        )
    return texts if paper is None else [*texts, f"Paper: {paper.source}"]


def write_tables(folder: Path, plan: Plan, outcomes: Outcomes) -> None:
    """Writes table.md, table.csv and results.json into a folder, each atomically."""
    lines = make_lines(plan, outcomes)
    write_atomic(folder / "table.md", to_markdown(plan, lines).encode())
    write_atomic(folder / "table.csv", to_csv(lines).encode())
    write_json(folder / "results.json", to_record(plan, outcomes, lines))


def to_markdown(plan: Plan, lines: Sequence[Line]) -> str:
    """Formats the tables as Markdown."""
    blocks = [f"# {plan.loaded.suite.name}"]
    for table in make_tables(lines):
        blocks += [f"## {table.title}", table.as_markdown()]
    return "\n\n".join([*blocks, *notes(plan)]) + "\n"


def to_csv(lines: Sequence[Line]) -> str:
    """Formats one line per recipe and row; figures are not rounded, missing ones are empty."""
    rows = []
    for line in lines:
        marks = {name: getattr(line.sees, name) for name in _SEEN} | {"official": line.is_official}
        row: dict[str, Any] = {"recipe": line.recipe, "method": line.row}
        row |= {name: "yes" if mark else "no" for name, mark in marks.items()}
        row |= {"n_seeds": line.n_seeds, "n_planned": line.n_planned}
        for name in FIGURES:
            row |= {name: line.mean[name], f"{name}_std": line.std[name]}
        names = PaperFigures.model_fields
        rows.append(row | {f"paper_{name}": _published(line, name) for name in names})
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def to_record(plan: Plan, outcomes: Outcomes, lines: Sequence[Line]) -> dict[str, Any]:
    """The lines and the state of each cell as plain values."""
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
        "cells": [cell_record(cell, outcomes[cell]) for cell in plan.cells],
    }


def cell_record(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """A cell and its outcome as plain values."""
    result = outcome.result
    return {
        "recipe": cell.recipe,
        "row": cell.row,
        "seed": cell.seed,
        "status": outcome.status,
        "command": cell.command,
        "seconds": outcome.seconds,
        "run": outcome.run,
        "result": None if result is None else replace(result, per_class={}).to_dict(),
        "exit_code": outcome.exit_code,
        "last_lines": list(outcome.last_lines),
    }
