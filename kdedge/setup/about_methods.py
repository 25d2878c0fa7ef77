"""Facts that methods declare, for lists and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

from kdedge.errors import KdedgeError
from kdedge.methods.registry import load_method


def load_all(names: Sequence[str]) -> tuple[dict[str, ModuleType], dict[str, list[str]]]:
    """Loads methods.

    Returns:
        The loaded modules by name; and for the others, message -> their names.
    """
    modules: dict[str, ModuleType] = {}
    problems: dict[str, list[str]] = {}
    for name in names:
        try:
            modules[name] = load_method(name)
        except KdedgeError as error:
            is_missing = str(error).startswith("The method")
            remedy = str(error).partition("\n")[2].strip()
            problems.setdefault(remedy if is_missing and remedy else str(error), []).append(name)
    return modules, problems


def describe(module: ModuleType) -> dict[str, Any]:
    """A method's declared facts, and the losses that its settings can name, if any."""
    declared = module.METHOD
    losses = _losses(module)
    return {
        "label": declared.label,
        "paper": declared.paper,
        "about": (module.__doc__ or "").partition("\n")[0],
        **asdict(declared.sees),
        **({"losses": losses} if losses else {}),
    }


def _losses(module: ModuleType) -> dict[str, str]:
    """Names and first lines of the losses that a method's settings can name."""
    from kdedge.methods.losses import ChosenLosses

    field = module.Settings.model_fields.get("losses")
    kind = None if field is None else field.annotation
    if not (isinstance(kind, type) and issubclass(kind, ChosenLosses)):
        return {}
    return {name: str(one.description) for name, one in kind.model_fields.items()}
