"""Plans the cells of a suite file: the commands, their order and their data."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kdedge.config.data_spec import DataSpec
from kdedge.config.load import (
    LoadedRecipe,
    check_paths,
    load_recipe,
    merged,
    override_texts,
    recipe_values,
)
from kdedge.config.recipe import Recipe
from kdedge.config.yaml_file import KeyPath
from kdedge.errors import DataError, KdedgeError, RecipeError
from kdedge.methods.registry import DataNeeds, load_method
from kdedge.paper.suite.spec import AVERAGE, LoadedSuite, Row, check_names, recipe_file
from kdedge.records.evaluation import Role
from kdedge.runs.find import find_run
from kdedge.setup.classes import load_classes
from kdedge.setup.method import (
    check_can_be_teacher,
    check_reads_pseudo_labels,
    choose_method,
    model_spec,
)
from kdedge.setup.role import check_sizes
from kdedge.training.teacher import with_baseline

_COMMANDS: dict[Role, str] = {"teacher": "teach", "student": "distill", "baseline": "train"}

# Parts of a recipe on which the model of a role does not depend
_UNREAD: dict[Role, tuple[str, ...]] = {
    "teacher": ("student", "baseline"),
    "student": ("baseline",),
    "baseline": (
        "teacher",
        *(f"student.{key}" for key in ("method", "settings", "optim", "views", "view_seed")),
    ),
}

_REMEDY = "  Remove trained_on from this row."


@dataclass(frozen=True, eq=False)
class Cell:
    """One cell of the grid: a row of the table on one recipe, with one seed.

    Attributes:
        recipe: the recipe's name.
        row: the row's label.
        seed: the seed.
        role: the role of its model, which is also the key in the run's eval.json.
        loaded: the recipe with the row's settings and the seed; it names the test images.
        is_zero_shot: whether it is zero-shot CLIP, which has no random draws.
        is_official: whether its recipe has `official: true`.
        sees: data that its model learns from.
        source: the cell whose run this cell measures on other images; None if it trains a run.
    """

    recipe: str
    row: str
    seed: int
    role: Role
    loaded: LoadedRecipe
    is_zero_shot: bool
    is_official: bool
    sees: DataNeeds
    source: Cell | None = None

    @property
    def label(self) -> str:
        """The cell's name in messages."""
        return f"{self.recipe}, {self.row}, seed {self.seed}"

    @property
    def command(self) -> str:
        """The command of `kdedge` that makes the cell's run, or measures its source's run."""
        return _COMMANDS[self.role] if self.source is None else "eval"

    @cached_property
    def trains_first(self) -> str:
        """Text that identifies the model it trains first: its teacher, or its own model."""
        if self.source is not None:
            return self.label  # it trains no model
        teacher = self.loaded.recipe.teacher
        has_own = self.role == "student" and teacher is not None and teacher.is_trained
        if not has_own and self.role != "teacher":
            return self.depends_on(self.role)
        choice = choose_method(self.loaded, "teacher")
        values = json.loads(self.depends_on("teacher"))
        values.pop("logit_adjustment", None)  # a teacher's logits are not adjusted
        if choice.optim.selection != "test":
            values["data"].pop("test", None)
        if not choice.data_needs.unlabeled_images:
            values["data"].pop("unlabeled", None)
        return json.dumps(values)

    def depends_on(self, role: Role) -> str:
        """The keys of its recipe on which the model of a role depends, as JSON text."""
        unread = {"name", "gates", "export", *_UNREAD[role]}
        values = recipe_values(self.loaded.recipe)
        own = (values.get("student") or {}).items()
        values["student"] = {key: value for key, value in own if f"student.{key}" not in unread}
        return json.dumps({key: value for key, value in values.items() if key not in unread})


@dataclass(frozen=True)
class Plan:
    """A checked suite.

    Attributes:
        loaded: the suite file.
        recipes: names of the recipes, in the suite's order.
        sources: names of further recipes on which rows are trained.
        cells: sorted by recipe, the sources first, then by seed.
    """

    loaded: LoadedSuite
    recipes: tuple[str, ...]
    sources: tuple[str, ...]
    cells: tuple[Cell, ...]

    def of(self, recipe: str, row: str) -> list[Cell]:
        """The cells of a row on a recipe, by seed."""
        return [cell for cell in self.cells if (cell.recipe, cell.row) == (recipe, row)]


def make_plan(loaded: LoadedSuite) -> Plan:
    """Loads every recipe with every row's settings, and plans the cells.

    Raises:
        RecipeError: a recipe, a method, a setting or a published figure is wrong, or two recipes
            or rows are the same.
        DataError: files that a recipe names are missing.
    """
    recipes: dict[Path, str] = {}  # file -> name
    for position, entry in enumerate(loaded.suite.recipes):
        file, name = _find_recipe(loaded, entry, ("recipes", position), recipes)
        recipes[file] = name
    sources: dict[Path, str] = {}
    trained_on: dict[int, Path] = {}
    for number, row in enumerate(loaded.suite.methods):
        if row.trained_on is not None:
            key = ("methods", number, "trained_on")
            file, name = _find_recipe(loaded, row.trained_on, key, recipes | sources)
            trained_on[number] = file
            if file not in recipes:
                sources[file] = name

    names = sources | recipes
    check_names(loaded, [*recipes.values(), *sources.values()])
    trained: dict[int, list[Cell]] = {}
    for number, file in trained_on.items():
        trained[number] = _row_cells(loaded, file, names[file], number)
        cell = trained[number][0]
        if cell.is_zero_shot or cell.role == "student":
            where = loaded.lines.where(("methods", number, "trained_on"))
            why = "can only predict the class names that its teacher knew"
            why = "is not trained" if cell.is_zero_shot else why
            raise RecipeError(f"{where}: {cell.row} {why}.\n{_REMEDY}")
    cells: list[Cell] = []
    for file, name in names.items():
        recipe_cells: list[Cell] = []
        for number in range(len(loaded.suite.methods)):
            if trained_on.get(number) == file:
                recipe_cells += trained[number]
            elif file in recipes and number in trained:
                recipe_cells += _measuring_cells(loaded, file, number, trained[number])
            elif file in recipes:
                recipe_cells += _row_cells(loaded, file, name, number)
        cells += sorted(recipe_cells, key=lambda cell: loaded.suite.seeds.index(cell.seed))
    return Plan(loaded, tuple(recipes.values()), tuple(sources.values()), tuple(cells))


def _find_recipe(
    loaded: LoadedSuite, entry: str, key: KeyPath, names: Mapping[Path, str]
) -> tuple[Path, str]:
    """The file and the name of a recipe, which differs from the known `names`.

    Only the source of a row may be one of the known recipes.
    """
    where = loaded.lines.where(key)
    file = recipe_file(loaded, entry, key=key)
    if key[0] == "methods":
        for known in names:
            if known.samefile(file):
                return known, names[known]
    try:
        name = _load(loaded, file).recipe.name
    except RecipeError as error:
        raise RecipeError(f"{where}: the recipe {file}:\n{error}") from error
    if name in names.values() or name == AVERAGE:
        what = "the mean over all recipes is" if name == AVERAGE else "another of the suite is"
        raise RecipeError(
            f"{where}: the recipe {file} has the name {name}, as {what} called.\n"
            "  Change its name: the table identifies recipes by name."
        )
    return file, name


def _measuring_cells(
    loaded: LoadedSuite, file: Path, number: int, trained: Sequence[Cell]
) -> list[Cell]:
    """The cells that measure the runs of a row's source on a recipe's test images."""
    resolved = _load_to_test(loaded, file)
    name = resolved.recipe.name
    cell = trained[0]
    if choose_method(cell.loaded, cell.role).settings.is_class_specific:
        known, names = (load_classes(each.recipe).names for each in (cell.loaded, resolved))
        new = [class_name for class_name in names if class_name not in known]
        if new:
            raise RecipeError(
                f"{loaded.lines.where(('methods', number, 'trained_on'))}: {cell.row} trains"
                f" separate tensors for each class of {cell.loaded.recipe.name}, and {len(new)} of"
                f" the {len(names)} classes of {name} are not among them, first"
                f' "{new[0]}".\n{_REMEDY}'
            )
    return [replace(cell, recipe=name, loaded=resolved, source=cell) for cell in trained]


def measuring_overrides(recipe: Recipe) -> list[str]:
    """Overrides, as texts for --set, to measure any run on a recipe's test images and classes."""
    values = recipe_values(recipe)
    overrides = {"classes": values["classes"]}
    overrides |= {f"data.{key}": values["data"].get(key) for key in ("test", "split", "root")}
    return override_texts(overrides)


def _row_cells(loaded: LoadedSuite, file: Path, recipe: str, number: int) -> list[Cell]:
    """The cells of a row on one recipe; only one for zero-shot CLIP, which has no random draws."""
    suite = loaded.suite
    row = loaded.suite.methods[number]
    try:
        resolved, role = _resolve_row(loaded, file, row)
    except (RecipeError, DataError) as error:
        where = loaded.lines.where(("methods", number))
        raise type(error)(f"{where}: {row.name} with {file}:\n{error}") from error
    spec = model_spec(resolved.recipe, role)
    is_zero_shot = spec.method == "zeroshot" and not spec.settings
    sees = row_sees(resolved, role)
    return [
        Cell(
            recipe=recipe,
            row=row.name,
            seed=seed,
            role=role,
            loaded=replace(resolved, recipe=resolved.recipe.model_copy(update={"seed": seed})),
            is_zero_shot=is_zero_shot,
            is_official=resolved.recipe.official and not is_zero_shot,
            sees=sees,
        )
        for seed in (suite.seeds[:1] if is_zero_shot else suite.seeds)
    ]


def _resolve_row(loaded: LoadedSuite, file: Path, row: Row) -> tuple[LoadedRecipe, Role]:
    """The recipe with a row's settings and its baseline filled in, and the row's role.

    Raises:
        RecipeError: the method or a setting is wrong.
        DataError: files that the recipe names are missing.
    """
    plain = _load(loaded, file).recipe
    name = row.method or model_spec(plain, row.role or "student").method
    role: Role = row.role or ("student" if load_method(name).METHOD.needs_teacher else "baseline")
    _check_changes_model(row, role)
    switch = {}
    if role != "baseline" and name != model_spec(plain, role).method:
        switch = {f"{role}.method": name, f"{role}.settings": {}}
    resolved = _load_to_test(loaded, file, switch, row.set, row.set_on.get(plain.name, {}))
    if role == "baseline":
        resolved = with_baseline(resolved, name)
    _check_can_train(resolved, role)
    return resolved, role


def _check_changes_model(row: Row, role: Role) -> None:
    """Checks that the row's model depends on every key that the row sets."""
    for key in itertools.chain(row.set, *row.set_on.values()):
        unread = [part for part in _UNREAD[role] if f"{key}.".startswith(f"{part}.")]
        if unread:
            raise RecipeError(
                f"set: {key} changes nothing: this row is the recipe's {role}, which does not"
                f" depend on {unread[0]}.\n"
                f"  Remove it; keys that only a {role} reads begin with {role}."
            )


def _check_can_train(resolved: LoadedRecipe, role: Role) -> None:
    """Checks the methods of a row's model and of the teacher that is trained for it."""
    teacher = resolved.recipe.teacher
    has_own = role == "student" and (teacher is None or teacher.is_trained)
    trained: list[Role] = ["teacher", role] if has_own else [role]
    for trained_role in trained:
        choice = choose_method(resolved, trained_role)
        if trained_role != "student":
            check_reads_pseudo_labels(choice, resolved.recipe)
        if trained_role == "teacher":
            check_can_be_teacher(choice)
    check_sizes(*((resolved, trained_role, None) for trained_role in trained))


def _load_to_test(loaded: LoadedSuite, file: Path, *overrides: Mapping[str, Any]) -> LoadedRecipe:
    """Loads a recipe and checks that it has test images and that its files exist."""
    resolved = _load(loaded, file, *overrides)
    check_paths(resolved)
    if resolved.recipe.data.test is None:
        raise RecipeError(
            f"{file} has no data.test, but a suite needs accuracies.\n"
            "  Add labeled test images; `kdedge schema` shows how."
        )
    return resolved


def _load(loaded: LoadedSuite, file: Path, *overrides: Mapping[str, Any]) -> LoadedRecipe:
    """Loads a recipe with the suite's and other overrides, whose paths start at its folder."""
    return load_recipe(file, merged(loaded.suite.set, *overrides), override_folder=loaded.folder)


def row_sees(loaded: LoadedRecipe, role: Role) -> DataNeeds:
    """The kinds of data from which a role's model, and a student's teacher, learn.

    The data behind a file of probabilities are unknown and left out.
    """
    recipe = loaded.recipe
    needs = _with_data(choose_method(loaded, role).data_needs, recipe.data)
    teacher = recipe.teacher
    if role == "student" and teacher is not None and teacher.file is None:
        method = teacher.method
        if teacher.run is not None:  # errors of the run are reported when it is used
            with contextlib.suppress(KdedgeError):
                method = str(find_run(str(teacher.run), Path()).read_provenance().method)
        needs |= _with_data(load_method(method).METHOD.main_data_needs, recipe.data)
    return needs


def _with_data(declared: DataNeeds, data: DataSpec) -> DataNeeds:
    """The declaration, adapted if the labels are pseudo-labels from a file."""
    if not declared.labels or data.pseudo_labels is None:
        return declared
    return DataNeeds(labels=data.labeled is not None, unlabeled_images=True, novel_class_names=True)
