"""Checks a recipe before a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdedge.api.arguments import load_for, need_training_packages
from kdedge.config.load import AnyRecipe, Overrides, check_paths
from kdedge.runs.folder import runs_folder
from kdedge.runtime.process import torch_as_before

if TYPE_CHECKING:
    from kdedge.training.preflight import Preflight


@torch_as_before()
def check(
    recipe: AnyRecipe,
    *,
    size: str | None = None,
    overrides: Overrides | None = None,
    root: str | Path | None = None,
    device: str | None = None,
) -> Preflight:
    """Checks a recipe before a run: classes, images, weights, memory, disk, time.

    It reads every image once, loads the weights and times a few steps. Nothing is written, except
    that open_clip downloads pretrained weights into its cache.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, a `Recipe` or a `LoadedRecipe`.
        size: `nano`, `small` or `base`, a student in place of the recipe's, as for `distill`.
        overrides: keys of the recipe with other values, such as `{"student.optim.lr": 0.01}`.
        root: folder of all runs; None for `$KDEDGE_RUNS`, or `runs` if it is not set.
        device: `cpu`, `cuda` or `cuda:N`; None for `cuda` if available, else `cpu`.

    Returns:
        The findings, line by line, and the estimated time until the verdict, in seconds.

    Raises:
        RecipeError: the recipe is wrong.
        DataError: images, labels or class names are wrong or missing.
        SetupError: torch, weights or the device is missing.
        ResourceError: memory or disk would run out.
    """
    loaded = load_for("student", recipe, overrides, size=size)
    check_paths(loaded)
    need_training_packages("The check of weights and steps")
    import torch

    from kdedge.setup.method import trained_roles, warn_of_unused_optim
    from kdedge.setup.workspace import Workspace, set_up_device
    from kdedge.training import preflight

    warn_of_unused_optim(loaded, *trained_roles(loaded))
    workspace = Workspace(runs_folder(root), set_up_device(device), is_read_only=True)
    with torch.enable_grad():
        return preflight.check(loaded, workspace)
