"""Explain every key of a recipe, or print the JSON schema."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from kdedge.cli._output import json_option, print_result, shown_columns
from kdedge.config.keys import explain
from kdedge.config.recipe import Recipe
from kdedge.methods.registry import list_methods
from kdedge.setup.about_methods import load_all
from kdedge.targets.table import target_records


@click.command("schema")
@json_option
def command(as_json: bool) -> None:
    """Explain every key of a recipe: type, bounds, default and where the default comes from.

    With --json it prints the JSON schema of a recipe, with each method's settings under "methods"
    and the targets of `kdedge export` under "targets".
    """
    schema = Recipe.model_json_schema()
    methods, targets = _method_schemas(), target_records()
    if as_json:
        print_result({**schema, "methods": methods, "targets": targets}, as_json=True)
        return
    blocks = ["Recipe", *_lines(schema)]
    for name, settings in methods.items():
        blocks += ["", f"settings of the method {name}", *_lines(settings)]
    blocks += ["", "targets of kdedge export"]
    for name, target in targets.items():
        blocks += [f"  {name}  ({', '.join(target['precisions'])})", f"      {target['help']}"]
    print_result(None, as_json=False, text="\n".join(blocks))


def _method_schemas() -> dict[str, Any]:
    """Each method's settings; warns about a method that cannot be imported."""
    modules, problems = load_all(list_methods())
    for problem, names in problems.items():
        logging.getLogger("kdedge").warning(
            "%s cannot be loaded, so its settings are not listed.\n  %s", ", ".join(names), problem
        )
    return {name: module.Settings.model_json_schema() for name, module in modules.items()}


def _lines(schema: dict[str, Any]) -> Iterator[str]:
    for key in explain(schema):
        yield f"  {key.name}  ({key.facts})"
        yield from textwrap.wrap(
            key.description,
            int(min(96, shown_columns())),
            initial_indent="      ",
            subsequent_indent="      ",
        )
