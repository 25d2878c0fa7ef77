"""What a cell's result depends on, as hashes: where they are equal, so are the results.

A file that lists something (class names, their texts, images, pseudo-labels) counts with what it
says, and not by its path alone. Images in folders and archives count by their paths.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdedge._files import sha256_file, sha256_json
from kdedge.config.recipe import Recipe
from kdedge.setup.method import Role

MEASURED = ("test", "split", "root")
"""Keys of `data` that decide what is measured, beside the classes."""

UNREAD: dict[Role, tuple[str, ...]] = {
    "teacher": ("student", "baseline"),
    "student": ("baseline",),
    "baseline": (
        "teacher",
        *(f"student.{key}" for key in ("method", "settings", "optim", "views", "view_seed")),
    ),
}
"""The parts of a recipe that the model of a role does not depend on."""


def made_of(recipe: Recipe, role: Role) -> str:
    """Hash of what of a recipe a model's training and measuring depend on, beside the seed."""
    values = recipe.model_dump(mode="json", exclude={"export", "gates", "seed"})
    for unread in UNREAD[role]:
        model, _, key = unread.partition(".")
        if key:
            values[model].pop(key)  # a baseline has the student's backbone
        else:
            values.pop(model)
    return sha256_json([values, _with_contents(_named(recipe, recipe.data.model_dump()))])


def measured_on(recipe: Recipe) -> str:
    """Hash of what decides which test images are measured against which class names.

    One file is one file, however its path is written.
    """
    return sha256_json(_with_contents(_measured(recipe)))


def measured_lists(recipe: Recipe) -> list[Path]:
    """The files that say what is measured: class names, and a list of test images."""
    return [path for path in _paths(_measured(recipe)) if path.is_file()]


def _measured(recipe: Recipe) -> list[Any]:
    return _named(recipe, recipe.data.model_dump(include=set(MEASURED)))


def _named(recipe: Recipe, data: dict[str, Any]) -> list[Any]:
    return [recipe.classes.model_dump(), data]


def _with_contents(value: Any) -> Any:
    """A plain value whose paths have no detours, and whose files are there with their hashes."""
    if isinstance(value, dict):
        return {key: _with_contents(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_contents(item) for item in value]
    if isinstance(value, Path):
        return [str(value.resolve()), sha256_file(value) if value.is_file() else None]
    return value


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item)
    elif isinstance(value, Path):
        yield value
