"""The files and folders that a recipe names: whether they exist, and what shard patterns name."""

from __future__ import annotations

import glob
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from kdedge.config.explain import MAX_SHOWN
from kdedge.config.fields import HUB, PathKind, looks_like_path
from kdedge.config.load import LoadedRecipe
from kdedge.config.yaml_file import KeyPath, dotted
from kdedge.errors import DataError

MAX_SHARDS = 100_000
"""Largest number of shards of a pattern; more are taken for a typing error."""

_OTHER_PATTERN = re.compile(r"\{.*\}|::")
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")


def check_paths(loaded: LoadedRecipe) -> None:
    """Checks that the files and folders that a recipe names exist.

    Raises:
        DataError: some do not; all are listed, each with the line of its key.
    """
    problems = [
        (key, problem)
        for key, path, kind in _named_paths(loaded.recipe)
        if (problem := _path_problem(str(path), kind)) is not None
    ]
    if not problems:
        return
    where, override = loaded.lines.where, loaded.lines.override
    shown = [f"{where(key)}: {dotted(key)}: {problem}" for key, problem in problems[:MAX_SHOWN]]
    if len(problems) > MAX_SHOWN:
        shown.append(f"and {len(problems) - MAX_SHOWN} more.")
    are_overrides = {override(key) is not None for key, _ in problems}
    if False in are_overrides:
        folder = loaded.path.absolute().parent
        shown.append(f"  Relative paths start at the recipe's folder, {folder}.")
    if True in are_overrides:
        shown.append(f"  Relative paths of overrides start at {loaded.override_folder}.")
    raise DataError("\n".join(shown))


def _named_paths(spec: BaseModel, key: KeyPath = ()) -> Iterator[tuple[KeyPath, Path | str, str]]:
    """Key, path and kind of every path in a recipe."""
    run = getattr(spec, "run", None)
    if run is not None:  # a finished teacher; its other keys, and their files, are not used
        yield (*key, "run"), run, "folder"
        return
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from _named_paths(value, (*key, name))
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            for number, one in enumerate(value):
                yield from _named_paths(one, (*key, name, number))
        elif value is not None:
            options = get_args(field.annotation)  # none where the key is required
            marks = [m for option in options for m in getattr(option, "__metadata__", ())]
            for mark in (*field.metadata, *marks):
                if isinstance(mark, PathKind):
                    yield (*key, name), value, mark.kind


def _path_problem(path: str, kind: str) -> str | None:
    if kind == "weights":
        if not looks_like_path(path):
            return None
        kind = "file"
    if kind == "dataset":
        if path.startswith(HUB):
            return None  # its name on the Hub
        kind = "folder"
    if kind == "shards":
        if _OTHER_PATTERN.search(_RANGE.sub("", path)):
            return None  # the shard reader expands and checks {a,b}, steps and ::
        missing = [shard for shard in shard_paths(path) if not shard.is_file()]
        return f"{len(missing)} shards are missing, the first is {missing[0]}." if missing else None
    if kind == "table" and glob.has_magic(path):
        return None  # the table reader expands patterns
    if not Path(path).exists():
        return f"there is no {'file or folder' if kind == 'table' else kind} {path}."
    if kind == "file" and not Path(path).is_file():
        return f"{path} must be a file, but is a folder."
    if kind == "folder" and not Path(path).is_dir():
        return f"{path} must be a folder, but is a file."
    return None


def shard_paths(pattern: str) -> list[Path]:
    """Expands `{000..063}` ranges, zero-padded as written; without one, the pattern is one file.

    Raises:
        DataError: a range runs backwards, or the ranges name more than `MAX_SHARDS` files.
    """
    ranges = [(int(first), int(last)) for first, last in _RANGE.findall(pattern)]
    n_shards = math.prod(max(last - first + 1, 0) for first, last in ranges)
    if not 1 <= n_shards <= MAX_SHARDS:
        raise DataError(
            f"{pattern} names {n_shards} files; it must name 1 to {MAX_SHARDS}.\n"
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
