"""Checks a recipe before a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.recipe import AnyRecipe, Overrides, with_size
from kdedge.config.load import LoadedRecipe, load_recipe
from kdedge.config.paths import check_paths
from kdedge.setup.packages import need_training_packages

if TYPE_CHECKING:
    from kdedge.training.preflight import Preflight


def check(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path = "runs",
    device: str | None = None,
) -> Preflight:
    """Checks a recipe before a run: classes, images, weights, memory, disk, time.

    It reads every image once, loads the weights and times a few steps. Nothing is written, except
    that open_clip downloads pretrained weights into its cache.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping of its keys, or a `Recipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's, as for `distill`.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The findings, line by line, and the estimated training time in seconds.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        ResourceError: memory or disk would run out.
    """
    return check_loaded(load_recipe(recipe, with_size(overrides, size)), Path(root), device)


def check_loaded(loaded: LoadedRecipe, root: Path, device: str | None) -> Preflight:
    """Checks a loaded recipe."""
    check_paths(loaded)
    need_training_packages("The check of weights and steps")
    from kdedge.setup.device import choose_device
    from kdedge.setup.unused_optim import trained_roles, warn_of_unused_optim
    from kdedge.setup.workspace import Workspace
    from kdedge.training import preflight

    warn_of_unused_optim(loaded, *trained_roles(loaded))
    return preflight.check(loaded, Workspace(root, choose_device(device), is_read_only=True))
