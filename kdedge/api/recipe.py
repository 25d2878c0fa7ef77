"""Loads a recipe given as a file, a shipped name, a mapping or a `Recipe`, and writes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdedge.config.load import LoadedRecipe, in_order, load_recipe
from kdedge.config.recipe import Recipe
from kdedge.config.student_sizes import student_size
from kdedge.setup.new_recipe import Given, write_new_recipe

if TYPE_CHECKING:
    from kdedge.setup.method import Role


AnyRecipe = str | Path | Mapping[str, Any] | Recipe
"""A recipe's file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`."""

Overrides = Mapping[str, Any]
"""Dotted keys with values, such as `{"student.optim.epochs": 10}`."""


def role_keys(role: Role, short: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `epochs`, `batch_size`, `lr` and `seed` for the model that is trained."""
    return {
        key if key == "seed" else f"{role}.optim.{key}": value
        for key, value in short.items()
        if value is not None
    }


def load_for(
    role: Role,
    recipe: AnyRecipe,
    overrides: Overrides | None,
    *,
    size: str | None = None,
    **short: int | float | None,
) -> LoadedRecipe:
    """Loads a recipe with a call's overrides, student size and `role_keys`; later ones win.

    Raises:
        RecipeError: the recipe is wrong, or there is no such size.
    """
    of_size: dict[str, Any] = {}
    if size is not None:
        student = load_recipe(recipe).recipe.student
        of_size = student_size(size).overrides("promptkd" if student is None else student.method)
    return load_recipe(recipe, in_order(of_size, overrides or {}, role_keys(role, short)))


def init(
    name: str,
    *,
    images: str | Path,
    classes: str | Path,
    labeled: str | Path | None = None,
    test: str | Path | None = None,
    teacher: str | None = None,
    student: str | None = None,
    size: str | None = None,
    all_keys: bool = False,
) -> Path:
    """Writes `name`.yaml, a commented recipe for your own images, into the current folder.

    It checks the folders first and writes no recipe that cannot work. An existing file is never
    overwritten.

    Args:
        name: the recipe's name.
        images: folder of unlabeled images that the student is trained on.
        classes: text file of class names, one per line.
        labeled: labeled images, one subfolder per class; None for zero-shot CLIP as the teacher.
        test: labeled images for measuring accuracy, one subfolder per class.
        teacher: the teacher's CLIP as `MODEL:WEIGHTS`; None for OpenAI's ViT-L-14.
        student: the student's CLIP, for the device; None for that of `size`.
        size: `nano`, `small` or `base`; None for `base`, OpenAI's ViT-B-16, or for `student`.
        all_keys: write every key with its description.

    Returns:
        The recipe's file.

    Raises:
        RecipeError: the name cannot be used, the file exists, or a CLIP does not fit.
        DataError: a folder or the class list is missing or wrong.
        SetupError: a CLIP is named and torch is missing.
    """
    given = Given(
        images=Path(images),
        classes=Path(classes),
        labeled=None if labeled is None else Path(labeled),
        test=None if test is None else Path(test),
        teacher=teacher,
        student=student,
        size=size,
        all_keys=all_keys,
    )
    return write_new_recipe(name, given).path
