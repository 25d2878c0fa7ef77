"""Loads a recipe given as a file, a shipped name, a mapping or a `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from kdedge.api.keywords import check_keywords
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.recipe import Recipe
from kdedge.config.student_sizes import student_size
from kdedge.config.suite import override_texts

if TYPE_CHECKING:
    from kdedge.setup.method import Role

AnyRecipe = str | Path | Mapping[str, Any] | Recipe
"""A recipe's file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`."""

Overrides = Mapping[str, Any] | Sequence[str]
"""Dotted keys with values, or texts in the form of `--set`: `student.optim.epochs=10`."""

SHORTHANDS: dict[str, tuple[type[int] | type[float], str]] = {
    "epochs": (int, "Passes over the training images"),
    "batch_size": (int, "Images per step"),
    "lr": (float, "Learning rate after warm-up"),
    "seed": (int, "Seed of all random draws"),
}
"""Recipe keys that calls take as keywords and commands as options: their type and meaning."""


class Shorthands(TypedDict, total=False):
    """Recipe keys that a call takes as keywords.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step.
        lr: learning rate after warm-up.
        seed: of all random draws.
    """

    epochs: int
    batch_size: int
    lr: float
    seed: int


def shorthand_keys(role: Role) -> dict[str, str]:
    """Shorthand -> recipe key of the trained model: `epochs` -> `student.optim.epochs`."""
    return {name: name if name == "seed" else f"{role}.optim.{name}" for name in SHORTHANDS}


def loaded_with(
    recipe: AnyRecipe,
    role: Role,
    overrides: Overrides | None,
    shorthands: Mapping[str, Any],
) -> LoadedRecipe:
    """Loads a recipe with a call's overrides and shorthands."""
    keys = shorthand_keys(role)
    check_keywords(
        shorthands,
        keys,
        remedy="Give other keys of the recipe as overrides={'student.optim.momentum': 0.9}.",
    )
    short = {keys[name]: value for name, value in shorthands.items()}
    return load_recipe(recipe, [*set_texts(overrides), *override_texts(short)])


def with_size(overrides: Overrides | None, size: str | None) -> list[str]:
    """Returns overrides behind those of a student's size, in the form of `--set`.

    Raises:
        RecipeError: there is no such size.
    """
    of_size = {} if size is None else student_size(size).overrides()
    return [*override_texts(of_size), *set_texts(overrides)]


def set_texts(overrides: Overrides | None) -> list[str]:
    """Returns overrides in the form of `--set`."""
    if isinstance(overrides, Mapping):
        return override_texts(overrides)
    return list(overrides or ())
