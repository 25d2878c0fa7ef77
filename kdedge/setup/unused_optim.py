"""Warns about overrides of the shared `optim` that no trained model uses."""

from __future__ import annotations

import logging

from kdedge.config.load import LoadedRecipe
from kdedge.config.suite import override_texts
from kdedge.setup.method import Role, choose_method


def trained_roles(loaded: LoadedRecipe) -> list[Role]:
    """The models of a recipe that teaching and distillation train."""
    teacher = loaded.recipe.teacher
    roles: list[Role] = ["teacher"] if teacher is not None and teacher.is_trained else []
    return roles if loaded.recipe.student is None else [*roles, "student"]


def warn_of_unused_optim(loaded: LoadedRecipe, *roles: Role) -> None:
    """Warns about each `--set optim.KEY` that all trained models override.

    Args:
        loaded: the recipe with its overrides.
        roles: the models that are trained.
    """
    overridden = sorted(loaded.lines.overrides)
    keys = [str(path[1]) for path in overridden if len(path) == 2 and path[0] == "optim"]
    # Only if needed: training refuses a recipe without the model
    optims = {role: choose_method(loaded, role).optim for role in roles} if keys else {}
    for key in keys:
        asked = getattr(loaded.recipe.optim, key)
        own = {f"{role}.optim.{key}": getattr(optim, key) for role, optim in optims.items()}
        if own and asked not in own.values():
            others = " --set ".join(override_texts(dict.fromkeys(own, asked)))
            logging.getLogger(__name__).warning(
                "--set %s has no effect, overridden by %s.\n  Set that instead: --set %s",
                *override_texts({f"optim.{key}": asked}),
                " and ".join(override_texts(own)),
                others,
            )
