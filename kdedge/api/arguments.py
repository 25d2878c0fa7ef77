"""What calls of the API begin with: the recipe that they name, and needed packages."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

from kdedge import torchrun
from kdedge.config.fields import NAME_FORM, is_name
from kdedge.config.load import AnyRecipe, LoadedRecipe, Overrides, load_recipe, merged
from kdedge.config.student_sizes import student_size
from kdedge.errors import RecipeError
from kdedge.packages import need
from kdedge.records.evaluation import Role
from kdedge.runtime.process import warn_if_busy

log = logging.getLogger(__name__)


def role_keys(role: Role, options: Mapping[str, Any]) -> dict[str, Any]:
    """Turns `epochs`, `batch_size`, `lr` and `seed` into keys such as `student.optim.epochs`."""
    return {
        key if key == "seed" else f"{role}.optim.{key}": value
        for key, value in options.items()
        if value is not None
    }


def load_for(
    role: Role,
    recipe: AnyRecipe,
    overrides: Overrides | None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    *,
    size: str | None = None,
) -> LoadedRecipe:
    """Loads a recipe with a student size, overrides and the options of `role_keys`; the last wins.

    Raises:
        RecipeError: the recipe is wrong, or there is no such size.
    """
    options = {"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
    keys = merged(overrides or {}, role_keys(role, options))
    if size is not None:
        student = load_recipe(recipe, keys).recipe.student
        method = "promptkd" if student is None else student.method
        keys = merged(student_size(size).overrides(method), keys)
    return load_recipe(recipe, keys)


def check_name(name: str) -> None:
    """Checks the name of a recipe or run.

    Raises:
        RecipeError: no folder may have this name.
    """
    if not is_name(name):
        raise RecipeError(f'"{name}" cannot be the name of a recipe or run.\n  Use {NAME_FORM}.')


def need_training_packages(purpose: str) -> None:
    """Checks that the packages of the train extra are installed; logs that PyTorch is loaded next.

    Raises:
        MissingPackage: a package is not installed.
    """
    need("torch", "torchvision", "open_clip", "tensorboard", purpose=purpose)
    warn_if_busy()
    # Loading takes seconds, on a slow disk a minute; with several processes, only rank 0 logs it
    if "torch" not in sys.modules and torchrun.rank() == 0:
        log.info("Loading PyTorch.")
