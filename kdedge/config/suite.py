"""Suite files: a grid of recipes, methods and seeds, and published figures to stand beside ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from kdedge.config._fields import PlainText, Strict, check_name
from kdedge.config._yaml import KeyPath, LineMap, dump_value, parse_yaml
from kdedge.config.explain import explain_validation, nearest
from kdedge.config.load import read_text, shipped_recipes
from kdedge.errors import RecipeError

__all__ = [
    "AVERAGE",
    "LoadedSuite",
    "PaperFigures",
    "PaperSpec",
    "Row",
    "Suite",
    "check_paper",
    "load_suite",
    "override_texts",
    "recipe_file",
]

AVERAGE = "average"
"""What the mean over all recipes is called, in tables and among the paper's figures."""

_KEY = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
_MAX_LABEL = 80


def _check_label(text: str) -> str:
    if len(text) > _MAX_LABEL or not text.isprintable() or text != text.strip():
        raise ValueError(
            f"is a row's label and may hold up to {_MAX_LABEL} characters on one line, got"
            f' "{text[:_MAX_LABEL]}"'
        )
    return text


def _check_overrides(values: dict[str, Any]) -> dict[str, Any]:
    for key in values:
        if not _KEY.fullmatch(key):
            raise ValueError(
                f'has the key "{key}"; write keys as --set takes them: student.optim.epochs: 10'
            )
        if key == "seed":
            raise ValueError("has seed, which a suite sets itself; list it under seeds")
    return values


Overrides = Annotated[dict[str, Any], AfterValidator(_check_overrides)]
Percentage = Annotated[float, Field(ge=0, le=100)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Row(Strict):
    """A row of the table: a method with its settings."""

    name: Annotated[PlainText, AfterValidator(_check_label)] = Field(
        description="The row's label; the method's name where it is left out."
    )
    method: PlainText | None = Field(
        None,
        description="Method name; `kdedge methods` lists them. Left out: the recipe's own for the"
        " role.",
    )
    role: Literal["student", "teacher"] = Field(
        "student",
        description="Whose backbone it is trained on. student: as `kdedge distill` trains a method"
        " that learns from a teacher, and `kdedge train` any other. teacher: as `kdedge teach`.",
    )
    set: Overrides = Field(
        default_factory=dict,
        description="Keys of the recipe that differ in this row, as --set takes them. Relative"
        " paths start at the suite's folder.",
    )
    trained_on: PlainText | None = Field(
        None,
        description="The one recipe, as under recipes, that the row is trained on, once a seed; on"
        " the suite's recipes it is only measured, with their class names and test images. Left"
        " out: each of the suite's recipes.",
    )


class PaperFigures(Strict):
    """Published accuracies of one row on one recipe's data, percent."""

    base: Percentage | None = Field(None, description="Base classes.")
    novel: Percentage | None = Field(None, description="Novel classes.")
    harmonic_mean: Percentage | None = Field(None, description="Of the two, as printed.")
    all: Percentage | None = Field(None, description="All classes together.")


class PaperSpec(Strict):
    """Published figures, printed beside ours."""

    source: PlainText = Field(description="Where they are printed: paper, table, data set.")
    figures: dict[str, dict[str, PaperFigures]] = Field(
        description=f"Recipe's name (or {AVERAGE}, over all recipes) -> row's label -> figures."
    )


def _with_label(value: object) -> object:
    """A method's name is short for a row, and labels it where no other label is given."""
    if isinstance(value, str):
        return {"name": value, "method": value}
    if isinstance(value, dict) and "name" not in value and "method" in value:
        return {"name": value["method"], **value}
    return value


class Suite(Strict):
    """A grid of recipes, methods and seeds: each cell is a run, or two with its teacher's."""

    version: Literal[1] = Field(1, description="Version of this schema.")
    name: Annotated[str, AfterValidator(check_name)] = Field(
        description="Letters, digits, dot, underscore, hyphen; the suite is kept in suites/<name>."
    )
    recipes: tuple[PlainText, ...] = Field(
        strict=False,
        min_length=1,
        description="Recipe files, relative to the suite's folder, or names of shipped recipes.",
    )
    methods: tuple[Annotated[Row, BeforeValidator(_with_label)], ...] = Field(
        strict=False,
        min_length=1,
        description="Rows of the table: method names, or mappings with settings of their own.",
    )
    seeds: tuple[Seed, ...] = Field(
        (1, 2, 3),
        strict=False,
        min_length=1,
        description="Seeds of each row. 1, 2 and 3 in the published tables (arXiv:2307.06948,"
        " 4.1).",
    )
    set: Overrides = Field(
        default_factory=dict, description="Keys of the recipes that differ in all rows."
    )
    paper: PaperSpec | None = Field(None, description="Published figures beside ours.")


@dataclass(frozen=True)
class LoadedSuite:
    """A suite that passed the schema, and where it came from.

    Attributes:
        suite: the values.
        path: its file.
        lines: where each key stands.
    """

    suite: Suite
    path: Path
    lines: LineMap

    @property
    def folder(self) -> Path:
        """Where relative paths in it start."""
        return self.path.absolute().parent


def load_suite(path: Path) -> LoadedSuite:
    """Reads and validates a suite file; its recipes are not read.

    Raises:
        RecipeError: no such file, not YAML, unknown keys, wrong types, anything listed twice.
    """
    values, lines = parse_yaml(read_text(path, what="suite"), name=str(path), what="suite")
    if not isinstance(values, dict):
        got = "nothing" if values is None else type(values).__name__
        raise RecipeError(
            f"{path}: a suite is a mapping (key: value), got {got}.\n"
            "  It has at least name, recipes and methods."
        )
    try:
        suite = Suite.model_validate(values)
    except ValidationError as error:
        raise explain_validation(error, model=Suite, lines=lines, what="suite") from error
    for key, entries in (
        ("recipes", suite.recipes),
        ("methods", [row.name for row in suite.methods]),
        ("seeds", suite.seeds),
    ):
        _refuse_twice(key, entries, lines)
    return LoadedSuite(suite, path, lines)


def _refuse_twice(key: str, entries: Sequence[str | int], lines: LineMap) -> None:
    for position, entry in enumerate(entries):
        if entry in entries[:position]:
            remedy = "Give each row a name of its own." if key == "methods" else "Keep one of them."
            raise RecipeError(
                f"{lines.where((key, position))}: {key} holds {entry} twice, first in line"
                f" {lines.line((key, entries.index(entry)))}.\n  {remedy}"
            )


def recipe_file(loaded: LoadedSuite, entry: str, *, key: KeyPath) -> Path:
    """The file of a recipe that a suite names.

    Args:
        loaded: the suite.
        entry: a file, relative to the suite's folder, or the name of a shipped recipe.
        key: where the suite names it.

    Raises:
        RecipeError: there is none; the message has the suite's line and the nearest name.
    """
    where = loaded.lines.where(key)
    shipped = shipped_recipes()
    if entry in shipped:
        return shipped[entry]
    path = loaded.folder / Path(entry).expanduser()
    if path.is_file():
        return path
    names = {file.name: entry.replace(path.name, file.name) for file in path.parent.glob("*.yaml")}
    names |= {name: name for name in shipped}
    guess = nearest(path.name, names)
    remedy = (
        f"Did you mean {names[guess]}?"
        if guess is not None
        else f"Name a file, relative to {loaded.folder}, or one of: {', '.join(shipped)}."
    )
    raise RecipeError(f"{where}: there is no recipe {entry}.\n  {remedy}")


def override_texts(values: Mapping[str, Any]) -> list[str]:
    """Keys and values as `--set` takes them."""
    return [f"{key}={dump_value(value)}" for key, value in values.items()]


def check_paper(loaded: LoadedSuite, recipes: Sequence[str]) -> None:
    """Makes sure that every published figure stands beside one of ours.

    Args:
        loaded: the suite.
        recipes: names of its recipes.

    Raises:
        RecipeError: a figure belongs to no recipe or row of the suite.
    """
    paper = loaded.suite.paper
    labels = [row.name for row in loaded.suite.methods]
    for recipe, rows in (paper.figures if paper is not None else {}).items():
        _check_known(loaded, ("paper", "figures", recipe), "a recipe", [*recipes, AVERAGE])
        for label in rows:
            _check_known(loaded, ("paper", "figures", recipe, label), "a row", labels)


def _check_known(
    loaded: LoadedSuite, key: tuple[str, ...], what: str, known: Sequence[str]
) -> None:
    if key[-1] in known:
        return
    guess = nearest(key[-1], known)
    remedy = f"Did you mean {guess}?" if guess else f"There are: {', '.join(known)}."
    raise RecipeError(
        f"{loaded.lines.where(key)}: paper.figures: {key[-1]} is not {what} of this suite.\n"
        f"  {remedy}"
    )
