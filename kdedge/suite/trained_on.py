"""Checks which rows can be trained on one recipe and measured on another."""

from __future__ import annotations

from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import Recipe
from kdedge.errors import RecipeError
from kdedge.setup.classes import load_classes
from kdedge.setup.method import Role, choose_method

_REMEDY = "  Remove trained_on from this row."


def check_answers_for_others(where: str, row: str, *, role: Role, is_zero_shot: bool) -> None:
    """Refuses rows that cannot classify another recipe's class names at all.

    Args:
        where: file and line, for the message.
        row: the row's label.
        role: the row's model.
        is_zero_shot: whether it is zero-shot CLIP.

    Raises:
        RecipeError: it is a student, or zero-shot CLIP.
    """
    if role != "student" and not is_zero_shot:
        return
    why = (
        "is not trained"
        if is_zero_shot
        else "can only predict the class names that its teacher knew"
    )
    raise RecipeError(f"{where}: {row} {why}.\n{_REMEDY}")


def check_names(
    where: str, row: str, *, trained: LoadedRecipe, role: Role, measured: Recipe
) -> None:
    """Refuses a row with trained tensors per class if the other recipe has other classes.

    Args:
        where: file and line, for the message.
        row: the row's label.
        trained: the recipe that it is trained on, with the row's settings.
        role: the row's model in it.
        measured: the recipe that it is measured on.

    Raises:
        RecipeError: a class name of that recipe is not among those trained.
        DataError: a class list cannot be read.
    """
    if not choose_method(trained, role).settings.is_class_specific:
        return
    known = set(load_classes(trained.recipe).names)
    names = load_classes(measured).names
    new = [name for name in names if name not in known]
    if new:
        raise RecipeError(
            f"{where}: {row} trains separate tensors for each class of {trained.recipe.name},"
            f" and {len(new)} of the {len(names)} classes of {measured.name} are not among them,"
            f' first "{new[0]}".\n{_REMEDY}'
        )
