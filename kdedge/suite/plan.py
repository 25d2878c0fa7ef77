"""From a suite file to its cells: which commands run, and what each result depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdedge._files import sha256_json
from kdedge.config.export_spec import ExportSpec, GatesSpec
from kdedge.config.load import LoadedRecipe, check_paths, dump_recipe, load_recipe
from kdedge.config.recipe import Recipe
from kdedge.config.suite import (
    AVERAGE,
    LoadedSuite,
    Row,
    check_paper,
    override_texts,
    recipe_file,
)
from kdedge.errors import DataError, RecipeError
from kdedge.methods.registry import load_method
from kdedge.suite.models import frozen_clip, models_of
from kdedge.training.baseline import with_baseline
from kdedge.training.parts import Role, choose_method, model_spec
from kdedge.training.teachers import check_can_teach

_COMMANDS: dict[Role, str] = {"teacher": "teach", "student": "distill", "baseline": "train"}

ZERO_SHOT = "zeroshot"
"""The method that every run measures beside its own, on its backbone."""


@dataclass(frozen=True)
class Cell:
    """One place of the grid: a row of the table on one recipe, with one seed.

    Attributes:
        recipe: the recipe's name.
        row: the row's label.
        seed: the seed.
        role: which model of its run it is, as in the run's eval.json.
        arguments: of `kdedge`: the command that makes its run, without where and how it runs.
        models: hashes of the models that the command trains where no finished run has them.
        key: hash of the role and of what the resolved recipe says for it, with the seed.
        measured: hash of what decides which test images are measured against which names.
        zero_shot: hash of that and the frozen backbone: zero-shot CLIP depends on nothing else.
        is_zero_shot: whether any run with the same `zero_shot` has measured this cell already.
        is_official: whether its recipe says `official: true`.
    """

    recipe: str
    row: str
    seed: int
    role: Role
    arguments: tuple[str, ...]
    models: tuple[str, ...]
    key: str
    measured: str
    zero_shot: str
    is_zero_shot: bool
    is_official: bool

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{self.recipe}, {self.row}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A checked suite.

    Attributes:
        loaded: the suite file.
        recipes: names of the recipes, in the suite's order.
        cells: in the order in which they run: seed by seed, and last those that others measure.
    """

    loaded: LoadedSuite
    recipes: tuple[str, ...]
    cells: tuple[Cell, ...]

    def of(self, recipe: str, row: str) -> list[Cell]:
        """The cells of a row on a recipe, by seed."""
        return [cell for cell in self.cells if (cell.recipe, cell.row) == (recipe, row)]


def make_plan(loaded: LoadedSuite) -> Plan:
    """Loads every recipe with every row's settings, and says what runs.

    Raises:
        RecipeError: a recipe, a method, a setting or a published figure is wrong, or two recipes
            or rows are the same; before any cell has run.
        DataError: files that a recipe names are not there.
    """
    suite = loaded.suite
    names: list[str] = []
    cells: list[Cell] = []
    for position in range(len(suite.recipes)):
        name = _recipe_name(loaded, position, taken=names)
        names.append(name)
        rows = [_row_cells(loaded, position, name, number) for number in range(len(suite.methods))]
        _refuse_same_rows(loaded, [row[0] for row in rows])
        cells += sorted(
            (cell for row in rows for cell in row),
            key=lambda cell: (cell.is_zero_shot, suite.seeds.index(cell.seed)),
        )
    check_paper(loaded, names)
    return Plan(loaded, tuple(names), tuple(cells))


def _recipe_name(loaded: LoadedSuite, position: int, *, taken: Sequence[str]) -> str:
    where = loaded.lines.where(("recipes", position))
    file = recipe_file(loaded, position)
    try:
        name = _load(loaded, file, list(loaded.suite.set.items())).recipe.name
    except RecipeError as error:
        raise RecipeError(f"{where}: the recipe {file}:\n{error}") from error
    if name in taken or name == AVERAGE:
        what = "the mean over all recipes is" if name == AVERAGE else "another of the suite is"
        raise RecipeError(
            f"{where}: the recipe {file} has the name {name}, as {what} called.\n"
            "  Change its name: the table tells recipes by it."
        )
    return name


def _row_cells(loaded: LoadedSuite, position: int, recipe: str, number: int) -> list[Cell]:
    """The cells of a row on one recipe; one for zero-shot CLIP, where nothing is drawn."""
    suite, row = loaded.suite, loaded.suite.methods[number]
    file = recipe_file(loaded, position)
    try:
        resolved = resolve_row(loaded, file, row)
    except (RecipeError, DataError) as error:
        where = loaded.lines.where(("methods", number))
        raise type(error)(f"{where}: {row.name} with {file}:\n{error}") from error
    spec = model_spec(resolved.recipe, resolved.role)
    is_zero_shot = spec.method == ZERO_SHOT and not spec.settings
    measured = measured_on(resolved.recipe)
    zero_shot = sha256_json([measured, frozen_clip(spec)])
    cells = []
    for seed in suite.seeds[:1] if is_zero_shot else suite.seeds:
        made_from = zero_shot if is_zero_shot else _what_trains(resolved, seed)
        cells.append(
            Cell(
                recipe=recipe,
                row=row.name,
                seed=seed,
                role=resolved.role,
                arguments=(*resolved.arguments, "--set", f"seed={seed}"),
                models=models_of(resolved.with_seed(seed), resolved.role),
                key=sha256_json([resolved.role, made_from]),
                measured=measured,
                zero_shot=zero_shot,
                is_zero_shot=is_zero_shot,
                is_official=resolved.recipe.official and not is_zero_shot,
            )
        )
    return cells


@dataclass(frozen=True)
class ResolvedRow:
    """A row on one recipe.

    Attributes:
        loaded: the recipe with the row's settings, and its baseline written out.
        role: which of the recipe's models the row is.
        arguments: of `kdedge`, without where and how it runs, and without the seed.
    """

    loaded: LoadedRecipe
    role: Role
    arguments: tuple[str, ...]

    @property
    def recipe(self) -> Recipe:
        """What was loaded."""
        return self.loaded.recipe

    def with_seed(self, seed: int) -> LoadedRecipe:
        """The recipe of one cell."""
        return replace(self.loaded, recipe=self.recipe.model_copy(update={"seed": seed}))


def resolve_row(loaded: LoadedSuite, file: Path, row: Row) -> ResolvedRow:
    """The recipe as a row wants it, and the command that trains it.

    Raises:
        RecipeError: the method or a setting is wrong.
        DataError: files that the recipe names are not there.
    """
    common = list(loaded.suite.set.items())
    plain = _load(loaded, file, common).recipe
    name = row.method or model_spec(plain, row.role).method
    learns_from_teacher = load_method(name).Method.needs_teacher
    role: Role = row.role if learns_from_teacher or row.role == "teacher" else "baseline"
    given = [*common, *_switch_to(name, plain, role).items(), *row.set.items()]
    resolved = _load(loaded, file, given)
    check_paths(resolved)
    if resolved.recipe.data.test is None:
        raise RecipeError(
            f"{file} has no data.test, and a suite is a table of accuracies.\n"
            "  Add labeled test images; `kdedge schema` shows how."
        )
    if role == "baseline":
        resolved = with_baseline(resolved, name)
    _check_methods(resolved, role)
    method = ("--method", name) if role == "baseline" else ()
    options = _as_options(given, resolved.recipe)
    return ResolvedRow(resolved, role, (_COMMANDS[role], str(file), *method, *options))


def _load(loaded: LoadedSuite, file: Path, given: Sequence[tuple[str, Any]]) -> LoadedRecipe:
    """A recipe with overrides, whose relative paths start at the suite's folder."""
    texts = [text for key, value in given for text in override_texts({key: value})]
    return load_recipe(file, texts, override_folder=loaded.folder)


def _switch_to(name: str, recipe: Recipe, role: Role) -> dict[str, Any]:
    """Overrides that put a method in the place of the recipe's, without that one's settings."""
    if role == "baseline":
        written = recipe.baseline.method if recipe.baseline is not None else None
        return {} if written in (None, name) else {"baseline": {}}
    if name == model_spec(recipe, role).method:
        return {}
    return {f"{role}.method": name, f"{role}.settings": {}}


def _check_methods(resolved: LoadedRecipe, role: Role) -> None:
    """Checks the settings of all models that a row trains."""
    choose_method(resolved, role)
    teacher = resolved.recipe.teacher
    if role == "baseline" or (
        role == "student" and teacher is not None and teacher.run is not None
    ):
        return
    check_can_teach(choose_method(resolved, "teacher"))


def _as_options(given: Sequence[tuple[str, Any]], resolved: Recipe) -> list[str]:
    """Overrides as a command line has them, with relative paths made absolute."""
    values = resolved.model_dump(mode="json")
    options = []
    for key, value in given:
        found: Any = values
        for part in key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        options += ["--set", *override_texts({key: _as_resolved(value, found)})]
    return options


def _as_resolved(given: Any, resolved: Any) -> Any:
    """What was given, with each text as validation left it: paths from the suite's folder."""
    if isinstance(given, dict) and isinstance(resolved, dict):
        return {key: _as_resolved(value, resolved.get(key)) for key, value in given.items()}
    return resolved if isinstance(given, str) and isinstance(resolved, str) else given


def _refuse_same_rows(loaded: LoadedSuite, rows: Sequence[Cell]) -> None:
    first: dict[str, Cell] = {}
    for number, cell in enumerate(rows):
        other = first.setdefault(cell.key, cell)
        if other is not cell:
            raise RecipeError(
                f"{loaded.lines.where(('methods', number))}: the row {cell.row} is the same as"
                f" {other.row} on {cell.recipe}: same method, same settings.\n"
                "  Keep one of them, or give one a set."
            )


def _what_trains(row: ResolvedRow, seed: int) -> str:
    """The parts of a recipe that a row's training and measuring depend on."""
    recipe = row.recipe
    parts: dict[str, Any] = {"export": ExportSpec(), "gates": GatesSpec(), "seed": seed}
    if row.role == "teacher":
        parts |= {"student": None, "baseline": None}
    elif row.role == "student":
        parts["baseline"] = None
    else:
        assert recipe.student is not None  # its backbone is the baseline's
        parts["teacher"] = None
        parts["student"] = recipe.student.model_copy(update={"settings": {}, "optim": None})
    return dump_recipe(recipe.model_copy(update=parts))


def measured_on(recipe: Recipe) -> str:
    """Hash of what decides which test images are measured against which class names."""
    data = recipe.data.model_dump(mode="json", include={"test", "split", "root"})
    return sha256_json([recipe.classes.model_dump(mode="json"), data])
