"""Recipe files: found, read with line numbers, overridden by `--set`, checked, written back."""

from __future__ import annotations

import functools
import glob
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from kdedge.config._fields import CommandLineText, looks_like_path
from kdedge.config._yaml import KeyPath, LineMap, dotted, dump_yaml, parse_yaml
from kdedge.config.explain import MAX_SHOWN, explain_validation, nearest
from kdedge.config.migrate import OLD_KEYS, SETTINGS, has_losses, migrate, old_keys
from kdedge.config.recipe import Recipe, SourceSpec
from kdedge.errors import DataError, RecipeError

__all__ = [
    "LineMap",
    "LoadedRecipe",
    "check_paths",
    "dump_recipe",
    "find_recipe",
    "load_recipe",
    "recipe_values",
    "shard_paths",
    "shipped_recipes",
]

log = logging.getLogger(__name__)

MAX_BYTES = 1_000_000
MAX_SHARDS = 100_000

_OVERRIDE = re.compile(r"([A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)=(.*)", re.DOTALL)
_OTHER_PATTERN = re.compile(r"\{.*\}|::")
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe that passed the schema, and where it came from.

    Attributes:
        recipe: the values, paths absolute.
        path: the recipe's file.
        lines: where each key stands.
        text: the file as it was read.
    """

    recipe: Recipe
    path: Path
    lines: LineMap
    text: str


def load_recipe(
    path_or_name: str | Path,
    overrides: Sequence[str] = (),
    *,
    override_folder: Path | None = None,
) -> LoadedRecipe:
    """Reads and validates a recipe. Files and folders that it names are not looked at.

    A recipe in the keys of version 1 is migrated, with a warning unless it says `version: 1`.

    Args:
        path_or_name: a file, or the name of a recipe in this folder or of a shipped one.
        overrides: `a.b=c` texts; later ones win.
        override_folder: where relative paths in them start; the current folder where left out.

    Raises:
        RecipeError: no such recipe, not YAML, unknown keys, wrong types, numbers out of range.
    """
    path = find_recipe(path_or_name)
    text = read_text(path)
    values, lines = parse_yaml(text, name=str(path))
    if values is None:
        raise RecipeError(f"{path} is empty.\n  Write a recipe to start from with: kdedge init")
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path}:1: a recipe is a mapping (key: value), got {_kind(values)}.\n"
            "  Start from a shipped recipe, or write one with: kdedge init"
        )
    values, lines = _with_overrides(values, lines, overrides)
    context = {"folder": path.absolute().parent, "override_folder": override_folder}
    try:
        recipe = Recipe.model_validate(values, context=context)
    except ValidationError as error:
        raise explain_validation(error, model=Recipe, lines=lines) from error
    return LoadedRecipe(recipe, path, lines, text)


def find_recipe(path_or_name: str | Path) -> Path:
    """Gives the file of a recipe: a path, else `<name>.yaml` here, else a shipped recipe.

    Raises:
        RecipeError: there is none.
    """
    path = Path(path_or_name).expanduser()
    is_name = isinstance(path_or_name, str) and path.name == path_or_name and path.suffix == ""
    if not is_name:
        if path.is_dir():
            raise RecipeError(f"{path} is a folder, not a recipe.\n  Name a .yaml file in it.")
        if not path.exists():
            raise RecipeError(f"There is no recipe {path}.{_hint(path.stem)}")
        return path
    shipped = shipped_recipes()
    local = Path(f"{path_or_name}.yaml")
    if local.is_file():
        return local
    if path_or_name in shipped:
        return shipped[str(path_or_name)]
    if path.is_file():
        return path
    raise RecipeError(f'There is no recipe named "{path_or_name}".{_hint(str(path_or_name))}')


def shipped_recipes() -> dict[str, Path]:
    """Names and files of the recipes that come with kdedge."""
    package = Path(__file__).parent.parent
    installed, checkout = package / "recipes", package.parent / "recipes"
    folder = installed if installed.is_dir() else checkout
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _hint(name: str) -> str:
    shipped = shipped_recipes()
    guess = nearest(name, shipped)
    if guess is not None:
        return f"\n  Did you mean {guess}?"
    return f"\n  Give a file's path, or one of: {', '.join(shipped)}."


def read_text(path: Path, *, what: str = "recipe") -> str:
    """Reads a small UTF-8 file.

    Args:
        path: the file.
        what: the kind of file, for messages.

    Raises:
        RecipeError: it cannot be read, is larger than a megabyte or is not UTF-8.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from error
    if len(data) > MAX_BYTES:
        raise RecipeError(
            f"{path} is larger than {MAX_BYTES // 1_000_000} MB, which no {what} needs.\n"
            "  Put long class lists into a text file: classes: {file: classes.txt}"
        )
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"{path}:{line}: byte {error.start} is not UTF-8 text.\n  Save the {what} as UTF-8."
        ) from error


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "a single value"


def _with_overrides(
    values: dict[str, Any], lines: LineMap, overrides: Sequence[str]
) -> tuple[dict[str, Any], LineMap]:
    """A recipe with its overrides, in the keys of today's version.

    Overrides with keys of version 1 come first, so that they lie over the file, whatever its
    version, and under the other overrides.
    """
    written = old_keys(values)
    if written and has_losses(values):
        raise RecipeError(
            f"{lines.where((*SETTINGS, written[0]))}: student.settings has losses, and {written[0]}"
            f" of version 1.\n  Write it below losses, and remove {written[0]}."
        )
    is_version_1 = values.get("version") == 1
    first = [text for text in overrides if _sets_old_key(text)]
    for some in (first, [text for text in overrides if text not in first]):
        lines = _apply_overrides(values, lines, some)
        migrated = migrate(values)
        if migrated.moved and not is_version_1:
            _advise(lines.file, ", ".join(old_keys(values)), migrated.new_form)
        values, lines = migrated.values, _moved(lines, migrated.moved)
    return values, lines


def _sets_old_key(override: str) -> bool:
    return override.partition("=")[0].removeprefix("student.settings.") in OLD_KEYS


def _moved(lines: LineMap, moved: Mapping[KeyPath, KeyPath]) -> LineMap:
    """The line map with new keys at the places of the old ones."""
    written = {new: lines.lines[old] for new, old in moved.items() if old in lines.lines}
    overridden = {new for new, old in moved.items() if old in lines.overrides}
    return replace(lines, lines={**lines.lines, **written}, overrides=lines.overrides | overridden)


@functools.cache  # a command may read its recipe several times
def _advise(file: str, keys: str, new_form: str) -> None:
    log.warning(
        "%s: student.settings has keys of recipes of version 1 (%s). They still work.\n"
        "  The new form, below student.settings, is %s",
        file,
        keys,
        new_form,
    )


def _apply_overrides(values: dict[str, Any], lines: LineMap, overrides: Sequence[str]) -> LineMap:
    """Writes the overrides into the values and their places into the line map."""
    places = set(lines.overrides)
    for text in overrides:
        match = _OVERRIDE.fullmatch(text)
        if match is None:
            raise RecipeError(
                f"--set {text} has no key and value.\n  Write it as --set student.optim.epochs=10"
            )
        keys = tuple(match[1].split("."))
        value, _ = parse_yaml(match[2], name=f"--set {match[1]}")
        _set(values, keys, _from_command_line(value))
        places = {place for place in places if place[: len(keys)] != keys} | {keys}
    return replace(lines, overrides=frozenset(places))


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any) -> None:
    target = values
    for depth, key in enumerate(keys[:-1], start=1):
        below = target.get(key)
        if below is None:
            below = target[key] = {}
        if not isinstance(below, dict):
            raise RecipeError(
                f"--set {dotted(keys)}: {dotted(keys[:depth])} is {_kind(below)} and has no keys.\n"
                f"  Set it as a whole: --set '{dotted(keys[:depth])}={{{keys[depth]}: ...}}'"
            )
        target = below
    target[keys[-1]] = value


def _from_command_line(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_command_line(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_command_line(item) for item in value]
    return CommandLineText(value) if isinstance(value, str) else value


def check_paths(loaded: LoadedRecipe) -> None:
    """Looks whether the files and folders that a recipe names are there.

    Raises:
        DataError: some are not; all are listed, each with the line of its key.
    """
    problems = [
        f"{loaded.lines.where(key)}: {dotted(key)}: {problem}"
        for key, path, kind in _named_paths(loaded.recipe)
        if (problem := _path_problem(path, kind)) is not None
    ]
    if problems:
        shown = problems[:MAX_SHOWN]
        if len(problems) > MAX_SHOWN:
            shown.append(f"and {len(problems) - MAX_SHOWN} more.")
        raise DataError(
            "\n".join(shown) + "\n  Relative paths start at the recipe's folder,"
            f" {loaded.path.absolute().parent}."
        )


_Kind = Literal["file", "folder", "shards", "files"]


def _named_paths(recipe: Recipe) -> Iterator[tuple[KeyPath, Path | str, _Kind]]:
    if recipe.classes.file is not None:
        yield ("classes", "file"), recipe.classes.file, "file"
    if recipe.classes.texts is not None:
        yield ("classes", "texts"), recipe.classes.texts, "file"
    for role in ("unlabeled", "labeled", "validation", "test"):
        source: SourceSpec | None = getattr(recipe.data, role)
        if source is None:
            continue
        if source.folder is not None:
            yield ("data", role, "folder"), source.folder, "folder"
        if source.list is not None:
            yield ("data", role, "list"), source.list, "file"
        if source.webdataset is not None:
            yield ("data", role, "webdataset"), source.webdataset, "shards"
        if source.parquet is not None:
            yield ("data", role, "parquet"), source.parquet, "files"
        if source.huggingface is not None:
            yield ("data", role, "huggingface"), source.huggingface, "folder"
    if recipe.data.pseudo_labels is not None:
        yield ("data", "pseudo_labels"), recipe.data.pseudo_labels, "file"
    if recipe.data.root is not None:
        yield ("data", "root"), recipe.data.root, "folder"
    if recipe.teacher is not None and recipe.teacher.run is not None:
        # The other keys of such a teacher are not used, so their files may be gone.
        yield ("teacher", "run"), recipe.teacher.run, "folder"
    for name, spec in (("teacher", recipe.teacher), ("student", recipe.student)):
        if spec is None or getattr(spec, "run", None) is not None:
            continue
        if spec.config is not None:
            yield (name, "config"), spec.config, "file"
        if spec.weights is not None and looks_like_path(spec.weights):
            yield (name, "weights"), spec.weights, "file"


def _path_problem(path: Path | str, kind: _Kind) -> str | None:
    if kind == "shards":
        if _OTHER_PATTERN.search(_RANGE.sub("", str(path))):
            return None  # {a,b}, steps and :: are for the reader of shards to expand and to check
        missing = [shard for shard in shard_paths(str(path)) if not shard.is_file()]
        return f"{len(missing)} shards are missing, the first is {missing[0]}." if missing else None
    if kind == "files" and glob.has_magic(str(path)):
        return None  # a pattern is for the reader of the files to look through
    path = Path(path)
    if not path.exists():
        return f"there is no {'file or folder' if kind == 'files' else kind} {path}."
    if kind == "file" and not path.is_file():
        return f"{path} must be a file, and is a folder."
    if kind == "folder" and not path.is_dir():
        return f"{path} must be a folder, and is a file."
    return None


def shard_paths(pattern: str) -> list[Path]:
    """Expands `{000..063}` ranges, zero-padded as written; without one, the pattern is one file.

    Raises:
        DataError: a range runs backwards, or all together name more than 100,000 files.
    """
    ranges = [(int(first), int(last)) for first, last in _RANGE.findall(pattern)]
    n_shards = math.prod(max(last - first + 1, 0) for first, last in ranges)
    if not 1 <= n_shards <= MAX_SHARDS:
        raise DataError(
            f"{pattern} names {n_shards} files; 1 to {MAX_SHARDS} are possible.\n"
            "  Write each range from the first to the last: {000..063}"
        )
    return [Path(name) for name in _expand(pattern)]


def _expand(pattern: str) -> list[str]:
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    numbers = range(int(match[1]), int(match[2]) + 1)
    tails = _expand(pattern[match.end() :])
    head, width = pattern[: match.start()], len(match[1])
    return [f"{head}{number:0{width}d}{tail}" for number in numbers for tail in tails]


def dump_recipe(recipe: Recipe) -> str:
    """Writes a recipe as YAML, paths absolute, defaults written out; it loads as an equal recipe.

    The shared `optim` is written in full, so that a later version's defaults change nothing; a
    model's own `optim` keeps only the keys that were given, as they lie over the shared ones.
    """
    return dump_yaml(recipe_values(recipe))


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The plain values that `dump_recipe` writes."""
    values = recipe.model_dump(mode="json", exclude_none=True)
    if not recipe.official:
        del values["official"]
    for source in values["data"].values():
        if isinstance(source, dict) and not {"benchmark", "synthetic"} & source.keys():
            source.pop("part", None)
    specs = {"teacher": recipe.teacher, "student": recipe.student, "baseline": recipe.baseline}
    for name, spec in specs.items():
        if spec is None:
            continue
        values[name]["settings"] = spec.settings
        if spec.optim is not None:
            values[name]["optim"] = spec.optim.model_dump(exclude_unset=True)
    return values
