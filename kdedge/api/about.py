"""What there is: on this machine, among the methods, in a recipe."""

from __future__ import annotations

import logging
from types import ModuleType
from typing import Any

_LOG = logging.getLogger(__name__)


def doctor() -> dict[str, Any]:
    """Tells what this machine has and what it lacks for each step, as plain values.

    Nothing is installed, and the network is not used.

    Returns:
        `machine`, `cuda` with its devices, `packages` with versions and how to install what is
        missing, and `problems`, one text each.
    """
    from kdedge.setup.doctor import examine

    return examine()


def list_methods() -> dict[str, dict[str, Any]]:
    """Lists the prompt methods that a recipe can name, and what each learns from.

    Returns:
        By name: `label`, `paper`, `about`, whether it learns from `labels`, `unlabeled_images` and
        `novel_class_names`, and the `losses` that its settings can name. A method that cannot be
        loaded here has nothing, and a warning says why.
    """
    from kdedge.methods import registry
    from kdedge.setup.about_methods import describe

    modules = _loaded_methods("Labels and what is learned from are unknown for")
    return {
        name: describe(modules[name]) if name in modules else {} for name in registry.list_methods()
    }


def schema() -> dict[str, Any]:
    """Gives the JSON schema of a recipe.

    Returns:
        The schema, with each method's settings under `methods` and what `export` can make under
        `targets`. A method that cannot be loaded here is left out, and a warning says why.
    """
    from kdedge.config.recipe import Recipe
    from kdedge.targets.table import target_records

    modules = _loaded_methods("The settings are left out of")
    settings = {name: module.Settings.model_json_schema() for name, module in modules.items()}
    return {**Recipe.model_json_schema(), "methods": settings, "targets": target_records()}


def _loaded_methods(what: str) -> dict[str, ModuleType]:
    """The methods that can be loaded here; a warning names the others."""
    from kdedge.methods.registry import list_methods
    from kdedge.setup.about_methods import load_all

    modules, problems = load_all(list_methods())
    for problem, names in problems.items():
        _LOG.warning("%s %s.\n  %s", what, ", ".join(names), problem)
    return modules
