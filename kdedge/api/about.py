"""Describes this machine, the methods, and the keys of a recipe."""

from __future__ import annotations

import logging
from dataclasses import asdict
from types import ModuleType
from typing import Any

from kdedge.errors import KdedgeError
from kdedge.methods import registry

log = logging.getLogger(__name__)


def doctor() -> dict[str, Any]:
    """Shows what this machine has and what each step still needs, as plain values.

    Nothing is installed, and the network is not used.

    Returns:
        `machine`, `cuda` with its devices, `packages` with versions and how to install missing
        ones, and `problems`, a list of texts.
    """
    from kdedge.setup.doctor import examine

    return examine()


def list_methods() -> dict[str, dict[str, Any]]:
    """Lists the methods that a recipe can name, and what each is trained on.

    Returns:
        By name: `label`, `paper`, `about`, whether it is trained on `labels`, `unlabeled_images`
        and `novel_class_names`, and the `losses` that its settings can name. A method that cannot
        be loaded has an empty entry, and a warning says why.
    """
    modules = _loaded_methods("only the names are listed")
    return {
        name: describe(modules[name]) if name in modules else {} for name in registry.list_methods()
    }


def schema() -> dict[str, Any]:
    """Returns the JSON schema of a recipe.

    Returns:
        The schema, with each method's settings under `methods` and the targets of `export` under
        `targets`. A method that cannot be loaded is left out, and a warning says why.
    """
    from kdedge.config.recipe import Recipe
    from kdedge.targets.registry import target_records

    modules = _loaded_methods("the settings are not listed")
    settings = {name: module.Settings.model_json_schema() for name, module in modules.items()}
    return {**Recipe.model_json_schema(), "methods": settings, "targets": target_records()}


def _loaded_methods(effect: str) -> dict[str, ModuleType]:
    """Returns the methods that can be loaded; a warning names the others and ends with `effect`."""
    modules: dict[str, ModuleType] = {}
    problems: dict[str, list[str]] = {}
    for name in registry.list_methods():
        try:
            modules[name] = registry.load_method(name)
        except KdedgeError as error:
            problems.setdefault(getattr(error, "remedy", str(error)), []).append(name)
    for problem, names in problems.items():
        log.warning(f"{', '.join(names)} cannot be loaded; {effect}.\n  {problem}")
    return modules


def describe(module: ModuleType) -> dict[str, Any]:
    """A method's declared facts, and the losses that its settings can name, if any."""
    from kdedge.methods.losses import ChosenLosses

    declared = module.METHOD
    facts = {
        "label": declared.label,
        "paper": declared.paper,
        "about": (module.__doc__ or "").partition("\n")[0],
        **asdict(declared.main_data_needs),
    }
    field = module.Settings.model_fields.get("losses")
    kind = None if field is None else field.annotation
    if isinstance(kind, type) and issubclass(kind, ChosenLosses):
        facts["losses"] = {name: str(loss.description) for name, loss in kind.model_fields.items()}
    return facts
