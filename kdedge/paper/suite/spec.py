"""Suite files: a grid of recipes, methods and seeds, and published figures to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from kdedge.config.explain import explain_validation
from kdedge.config.fields import Distinct, Name, PlainText, Strict
from kdedge.config.load import find_recipe
from kdedge.config.yaml_file import KeyPath, LineMap, parse_yaml
from kdedge.errors import RecipeError
from kdedge.files import MAX_YAML_BYTES, read_text
from kdedge.messages import suggestion
from kdedge.records.record import Percent

AVERAGE = "average"
"""Name of the mean over all recipes, in tables and among the paper's figures."""


def _check_overrides(values: dict[str, Any]) -> dict[str, Any]:
    if "seed" in values:
        raise ValueError("has seed; a suite sets it from its list seeds, so move it there")
    return values


CellOverrides = Annotated[dict[str, Any], AfterValidator(_check_overrides)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Row(Strict):
    """A row of the table: a method with its settings."""

    name: PlainText = Field(description="Label of the row. Default: the method's name.")
    method: PlainText | None = Field(
        None,
        description="Name of the method; `kdedge methods` lists them. Default: the recipe's method"
        " for the role.",
    )
    role: Literal["student", "teacher", "baseline"] | None = Field(
        None,
        description="How to train. student: on the student's backbone, as by `kdedge distill`."
        " baseline: on the same backbone, as by `kdedge train`. teacher: on the teacher's, as by"
        " `kdedge teach`. Default: student for a method that needs a teacher, else baseline.",
    )
    set: CellOverrides = Field(
        default_factory=dict,
        description="Keys of the recipe to override in this row, as for --set. Relative paths start"
        " at the suite's folder.",
    )
    set_on: dict[str, CellOverrides] = Field(
        default_factory=dict,
        description="Recipe name -> keys to override in this row on that recipe alone, after those"
        " of set.",
    )
    trained_on: PlainText | None = Field(
        None,
        description="Recipe to train the row on, once per seed. The row is then evaluated on the"
        " suite's recipes, with their class names and test images. Default: train on each of the"
        " suite's recipes.",
    )


class PaperFigures(Strict):
    """Published accuracies of one row on one recipe's data, percent."""

    base: Percent | None = Field(None, description="Accuracy on base classes.")
    novel: Percent | None = Field(None, description="Accuracy on novel classes.")
    harmonic_mean: Percent | None = Field(None, description="Their harmonic mean, as published.")
    all: Percent | None = Field(None, description="Accuracy on all classes together.")


class PaperSpec(Strict):
    """Published figures, shown next to ours."""

    source: PlainText = Field(description="Source of the figures: paper, table, data set.")
    figures: dict[str, dict[str, PaperFigures]] = Field(
        description=f"Recipe name (or {AVERAGE}, over all recipes) -> row label -> figures."
    )


def _with_label(value: object) -> object:
    """Expands a method's name to a row, and labels a row without a name by its method."""
    if isinstance(value, str):
        return {"name": value, "method": value}
    if isinstance(value, dict) and "name" not in value and "method" in value:
        return {"name": value["method"], **value}
    return value


class Suite(Strict):
    """A grid of recipes, methods and seeds. Each cell is a run, or two with its teacher."""

    version: Literal[1] = Field(1, description="Version of this schema.")
    name: Name = Field(
        description="Name of the suite: letters, digits, dot, underscore, hyphen. Its results are"
        " in suites/<name>."
    )
    recipes: Annotated[tuple[PlainText, ...], Distinct] = Field(
        strict=False,
        min_length=1,
        description="Recipe files, relative to the suite's folder, or names of shipped recipes.",
    )
    methods: Annotated[tuple[Annotated[Row, BeforeValidator(_with_label)], ...], Distinct] = Field(
        strict=False,
        min_length=1,
        description="Rows of the table: method names, or mappings with settings.",
    )
    seeds: Annotated[tuple[Seed, ...], Distinct] = Field(
        (1, 2, 3),
        strict=False,
        min_length=1,
        description="Seeds of each row. Published tables use 1, 2 and 3 (arXiv:2307.06948, 4.1).",
    )
    set: CellOverrides = Field(
        default_factory=dict, description="Keys of the recipes to override in all rows."
    )
    paper: PaperSpec | None = Field(None, description="Published figures to show next to ours.")


@dataclass(frozen=True)
class LoadedSuite:
    """A valid suite and its file; `lines` has the line of each key."""

    suite: Suite
    path: Path
    lines: LineMap

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the suite start at."""
        return self.path.absolute().parent


def load_suite(path: Path) -> LoadedSuite:
    """Reads and validates a suite file, without its recipes.

    Raises:
        RecipeError: no such file, not YAML, unknown keys, wrong types, anything listed twice.
    """
    text = read_text(
        path, remedy="Name a suite's YAML file.", error_type=RecipeError, max_bytes=MAX_YAML_BYTES
    )
    values, lines = parse_yaml(text, name=str(path), what="suite")
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
    return LoadedSuite(suite, path, lines)


def recipe_file(loaded: LoadedSuite, entry: str, *, key: KeyPath) -> Path:
    """Returns the file of a recipe that a suite names.

    Args:
        loaded: the suite.
        entry: a file, relative to the suite's folder, or the name of a shipped recipe.
        key: the entry's key path in the suite.

    Raises:
        RecipeError: there is no such recipe; the message has the suite's line and a similar name.
    """
    try:
        return find_recipe(entry, folder=loaded.folder)
    except RecipeError as error:
        raise RecipeError(f"{loaded.lines.where(key)}: {error}") from error


def check_names(loaded: LoadedSuite, recipes: Sequence[str]) -> None:
    """Checks that `set_on` and the published figures name recipes and rows of the suite.

    Args:
        loaded: the suite.
        recipes: names of its recipes.

    Raises:
        RecipeError: a name is not in the suite.
    """
    rows = loaded.suite.methods
    paper = loaded.suite.paper
    for number, row in enumerate(rows):
        for recipe in row.set_on:
            _check_known(loaded, ("methods", number, "set_on", recipe), "a recipe", recipes)
    for recipe, figures in (paper.figures if paper is not None else {}).items():
        _check_known(loaded, ("paper", "figures", recipe), "a recipe", [*recipes, AVERAGE])
        for label in figures:
            key = ("paper", "figures", recipe, label)
            _check_known(loaded, key, "a row", [row.name for row in rows])


def _check_known(loaded: LoadedSuite, key: KeyPath, what: str, known: Sequence[str]) -> None:
    name = str(key[-1])
    section = "set_on" if key[0] == "methods" else "paper.figures"
    if name in known:
        return
    remedy = suggestion(name, known, f"Known: {', '.join(known)}.")
    raise RecipeError(
        f"{loaded.lines.where(key)}: {section}: {name} is not {what} of this suite.\n  {remedy}"
    )
