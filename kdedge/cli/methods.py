"""List the prompt methods that a recipe can name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import ModuleType
from typing import Any

import click

from kdedge.cli._output import json_option, print_result, table
from kdedge.errors import KdedgeError
from kdedge.methods.registry import list_methods, load_method

_SEES = ("labels", "unlabeled_images", "novel_class_names")
_HEADER = ("method", "label", "labels", "unlabeled", "novel names", "")


@click.command("methods")
@json_option
def command(as_json: bool) -> None:
    """List the prompt methods that a recipe can name, and what each learns from.

    kdedge's own and those of installed packages. Labels: images of data.labeled; a student's labels
    come through its teacher. Unlabeled: images of data.unlabeled. Novel names: the names of classes
    without labels take part in training. Below the methods stand the losses that a student's
    settings can name. `kdedge schema` lists all settings.
    """
    record: dict[str, Any] = {}
    modules, problems = load_all(list_methods())
    for name in list_methods():
        record[name] = _describe(modules[name]) if name in modules else {}
    for problem, names in problems.items():
        logging.getLogger("kdedge").warning(
            "Labels and what is learned from are unknown for %s.\n  %s", ", ".join(names), problem
        )
    print_result(record, as_json=as_json, text=_text(record))


def load_all(names: Sequence[str]) -> tuple[dict[str, ModuleType], dict[str, list[str]]]:
    """Loads methods.

    Returns:
        The modules that could be loaded, by name; and what to do about the others, with their
        names.
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


def _describe(module: ModuleType) -> dict[str, Any]:
    """What a method declares, and the losses that its settings can name, if any."""
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


def _text(record: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, about in record.items():
        marks = [("yes" if about[key] else "-") if about else "?" for key in _SEES]
        label = about.get("label", "?")
        rows.append([name, label, *marks, about.get("about", "").removeprefix(f"{label}: ")])
    blocks = [table(rows, header=_HEADER)]
    for name, about in record.items():
        if "losses" in about:
            blocks.append(table(list(about["losses"].items()), header=(f"loss of {name}", "")))
    return "\n\n".join(blocks)
