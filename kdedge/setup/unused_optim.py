"""Warns about overrides of the shared `optim` that no trained model uses."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kdedge.config.load import LoadedRecipe
from kdedge.config.recipe import OptimSettings
from kdedge.config.suite import override_texts
from kdedge.setup.method import Role, choose_method
from kdedge.setup.teachers import names_teacher_run, teacher_recipes


def trained_roles(loaded: LoadedRecipe) -> list[Role]:
    """The models of a recipe that teaching and distillation train."""
    is_taught = any(not names_teacher_run(one) for one in teacher_recipes(loaded))
    roles: list[Role] = ["teacher"] if is_taught else []
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
    optims = _optims(loaded, roles) if keys else {}
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


def _optims(loaded: LoadedRecipe, roles: Sequence[Role]) -> dict[str, OptimSettings]:
    """How each model of these roles is optimized, by its section of the recipe."""
    optims: dict[str, OptimSettings] = {}
    for role in roles:
        if role != "teacher":
            optims[role] = choose_method(loaded, role).optim
            continue
        for number, one in enumerate(teacher_recipes(loaded)):
            if not names_teacher_run(one):
                name = "teacher" if loaded.recipe.teachers is None else f"teachers.{number}"
                optims[name] = choose_method(one, role).optim
    return optims
