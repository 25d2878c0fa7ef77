"""Recipe files: find, read with line numbers, override by `--set`, check, write back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from kdedge.config.explain import explain_validation
from kdedge.config.fields import OverrideText, plain_values
from kdedge.config.recipe import Recipe
from kdedge.config.yaml_file import LineMap, dotted, dump_value, dump_yaml, parse_yaml
from kdedge.errors import DataError, RecipeError
from kdedge.files import MAX_YAML_BYTES, home_path, read_text
from kdedge.messages import nearest, option, some_of

Overrides = Mapping[str, Any]
"""Dotted keys with values, such as `{"student.optim.epochs": 10}`; later ones win."""

# Former names of keys, which are read as the present ones
_FORMER_KEYS = {"balance": "logit_adjustment"}

_OVERRIDE = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe and its file.

    Attributes:
        recipe: the values; paths are absolute.
        path: the recipe's file.
        lines: the line of each key.
        text: the file's text.
    """

    recipe: Recipe
    path: Path
    lines: LineMap
    text: str


AnyRecipe = str | Path | Mapping[str, Any] | Recipe | LoadedRecipe
"""A recipe's file, the name of a shipped one, a mapping of its keys, or a recipe in Python."""


def load_recipe(
    source: AnyRecipe, overrides: Overrides | None = None, *, override_folder: Path | None = None
) -> LoadedRecipe:
    """Reads and validates a recipe, without checking the files and folders that it names.

    Args:
        source: a file, the name of a recipe in the current folder or a shipped one, or the values
            of a recipe, whose relative paths start at the current folder. A loaded recipe keeps
            its overrides.
        overrides: dotted keys, such as `student.optim.epochs`, and their values; later ones win.
        override_folder: where relative paths in overrides start; default: the current folder.

    Raises:
        RecipeError: no such recipe, not YAML, unknown keys, wrong types, numbers out of range.
    """
    values, lines, path, text = _read(source)
    values, lines = _with_present_keys(values, lines)
    overridden = set(lines.overrides)
    for key, value in (overrides or {}).items():
        first, *others = key.split(".")
        keys = (_FORMER_KEYS.get(first, first), *others)
        _set(values, keys, _as_override(plain_values(value)))
        overridden = {other for other in overridden if other[: len(keys)] != keys} | {keys}
    lines = replace(lines, overrides=frozenset(overridden))
    context = {"folder": path.absolute().parent, "override_folder": override_folder}
    try:
        recipe = Recipe.model_validate(values, context=context)
    except ValidationError as error:
        raise explain_validation(error, model=Recipe, lines=lines) from error
    return LoadedRecipe(recipe, path, lines, text)


def _read(source: AnyRecipe) -> tuple[dict[str, Any], LineMap, Path, str]:
    """Returns the values of a recipe, the lines of its keys, its file and its text."""
    if isinstance(source, LoadedRecipe):
        return recipe_values(source.recipe), source.lines, source.path, source.text
    if isinstance(source, Mapping | Recipe):
        plain = recipe_values(source) if isinstance(source, Recipe) else plain_values(source)
        return plain, LineMap("the recipe"), Path("recipe"), dump_yaml(plain)
    path = find_recipe(source)
    remedy = "Check the path and your right to read it."
    text = read_text(path, remedy=remedy, error_type=RecipeError, max_bytes=MAX_YAML_BYTES)
    values, lines = parse_yaml(text, name=str(path))
    if values is None:
        raise RecipeError(f"{path} is empty.\n  Write a recipe to start from with: kdedge init")
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}:1: a recipe is a mapping (key: value), got {_kind(values)}.\n"
            "  Start from a shipped recipe, or write one with: kdedge init"
        )
    return values, lines, path, text


def _with_present_keys(values: dict[str, Any], lines: LineMap) -> tuple[dict[str, Any], LineMap]:
    """A recipe's values and lines under the present names of their keys.

    Raises:
        RecipeError: a key is there under both names.
    """
    for former, present in _FORMER_KEYS.items():
        if former in values and present in values:
            raise RecipeError(
                f"{lines.where((former,))}: {former} is a former name of {present}, and the recipe"
                f" has both.\n  Remove {former}."
            )
    renamed = {_FORMER_KEYS.get(key, key): value for key, value in values.items()}
    paths = {
        (_FORMER_KEYS.get(str(path[0]), path[0]), *path[1:]) if path else path: line
        for path, line in lines.lines.items()
    }
    return renamed, replace(lines, lines=paths)


def find_recipe(path_or_name: str | Path, *, folder: Path = Path()) -> Path:
    """Finds the file of a recipe: a path, `<name>.yaml` in the folder, or a shipped recipe.

    Args:
        path_or_name: a path, relative to the folder, or a name.
        folder: by default the current one.

    Raises:
        RecipeError: there is no such recipe.
    """
    path = folder / home_path(path_or_name)
    shipped = shipped_recipes()
    files = [path]
    if str(path_or_name) == path.name and path.suffix != ".yaml":
        files = [path.parent / f"{path.name}.yaml", shipped.get(path.name, path), path]
    for file in files:
        if file.exists() and not file.is_dir():
            return file
    parent = str(path_or_name).removesuffix(path.name)
    known = {file.stem: f"{parent}{file.name}" for file in sorted(path.parent.glob("*.yaml"))}
    guess = known.get(nearest(path.stem, known) or "") or nearest(path.stem, shipped)
    if guess is not None:
        remedy = f"Did you mean {guess}?"
    elif known:
        remedy = (
            f"YAML files in {path.parent.absolute()}: {', '.join(some_of(known.values(), 12))}."
        )
    else:
        remedy = f"{path.parent.absolute()} has no recipe. Write one with: kdedge init"
    raise RecipeError(f"There is no recipe {path_or_name}.\n  {remedy}")


def shipped_recipes() -> dict[str, Path]:
    """Returns the names and files of the recipes that come with kdedge."""
    package = Path(__file__).parent.parent
    installed = package / "recipes"
    checkout = package.parent / "recipes"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a single value"


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Reads the texts `a.b=c` of a command line's `--set`; later ones win.

    Raises:
        RecipeError: a text has no key, or its value is not YAML.
    """
    values: list[dict[str, Any]] = []
    for text in texts:
        match = _OVERRIDE.fullmatch(text)
        if match is None:
            raise RecipeError(
                f"--set {text} has no key and value.\n  Write it as --set student.optim.epochs=10"
            )
        values.append({match[1]: parse_yaml(match[2], name=f"--set {match[1]}")[0]})
    return merged(*values)


def merged(*overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Joins overrides: a key that is given twice has the later value, at the later position.

    The position matters: `{"student.settings": {}}` clears the settings that come before it.
    """
    joined: dict[str, Any] = {}
    for values in overrides:
        for key, value in values.items():
            joined.pop(key, None)
            joined[key] = value
    return joined


def override_texts(values: Mapping[str, Any]) -> list[str]:
    """Writes overrides as `--set` takes them."""
    return [f"{key}={dump_value(plain_values(value))}" for key, value in values.items()]


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    target = values
    for depth, key in enumerate(keys[:-1], start=1):
        child = target.get(key)
        if child is None:
            child = target[key] = {}
        if not isinstance(child, dict):
            is_entry = isinstance(child, list) and keys[depth].isdecimal()
            example = "[...]" if is_entry else f"{{{keys[depth]}: ...}}"
            raise RecipeError(
                f"{option('--set', 'overrides:')} {dotted(keys)}: {dotted(keys[:depth])} is"
                f" {_kind(child)} and has no keys.\n"
                f"  Set it as a whole: {dotted(keys[:depth])}={example}"
            )
        target = child
    target[keys[-1]] = value


def _as_override(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_override(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_override(item) for item in value]
    return OverrideText(value) if isinstance(value, str) else value


def dump_recipe(recipe: Recipe) -> str:
    """Writes a recipe as YAML that loads as an equal recipe: paths absolute, defaults included.

    The shared `optim` is written in full, so that another version's defaults change nothing. A
    model's own `optim` keeps only its given keys, as they override the shared ones.
    """
    return dump_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The plain values that `dump_recipe` writes."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    if not recipe.official:
        del values["official"]
    for role, source in values["data"].items():
        if isinstance(source, dict) and not getattr(recipe.data, role).has_parts:
            del source["part"]
    specs = {"teacher": recipe.teacher, "student": recipe.student, "baseline": recipe.baseline}
    for name, spec in specs.items():
        if spec is not None:
            values[name]["settings"] = plain_values(spec.settings)
            if spec.optim is not None:
                values[name]["optim"] = spec.optim.model_dump(exclude_unset=True)
    if recipe.teacher is not None and recipe.teacher.file is not None:
        values["teacher"] = {"file": values["teacher"]["file"]}
    return values


def named_files(recipe: Recipe) -> list[Path]:
    """The files that a recipe names, of those that exist."""
    paths: list[Path] = []
    Recipe.model_validate(recipe_values(recipe), context={"paths": paths})
    return [path for path in paths if path.is_file()]


def check_paths(loaded: LoadedRecipe) -> None:
    """Checks that the files and folders that a recipe names exist.

    Raises:
        DataError: some do not exist; the message lists all of them with the lines of their keys.
    """
    values = recipe_values(loaded.recipe)
    folder = loaded.path.absolute().parent
    if loaded.recipe.teacher is not None and loaded.recipe.teacher.run is not None:
        values["teacher"] = {"run": values["teacher"]["run"]}  # the other keys are not used
    try:
        Recipe.model_validate(values, context={"must_exist": True})
    except ValidationError as error:
        where = f"  Relative paths start at the recipe's folder, {folder}"
        if loaded.lines.overrides:
            where += "; in overrides at the current folder or the suite's"
        problems = explain_validation(error, model=Recipe, lines=loaded.lines)
        raise DataError(f"{problems}\n{where}.") from error
