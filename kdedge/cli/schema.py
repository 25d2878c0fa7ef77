"""Explain every key of a recipe, or print the JSON schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from kdedge.api.about import schema
from kdedge.cli.output import json_option, print_result, shown_columns
from kdedge.config.keys import list_keys


@click.command("schema")
@json_option
def command(as_json: bool) -> None:
    """Explain every key of a recipe: type, bounds, default and where the default comes from.

    With --json it prints the JSON schema of a recipe, with each method's settings under "methods"
    and the targets of `kdedge export` under "targets".
    """
    recipe_schema = schema()
    if as_json:
        print_result(recipe_schema, as_json=True)
        return
    methods = recipe_schema.pop("methods")
    targets = recipe_schema.pop("targets")
    blocks = ["Recipe", *_lines(recipe_schema)]
    for name, settings in methods.items():
        blocks += ["", f"settings of the method {name}", *_lines(settings)]
    blocks += ["", "targets of kdedge export"]
    for name, target in targets.items():
        blocks += [f"  {name}  ({', '.join(target['precisions'])})", f"      {target['help']}"]
    print_result(None, as_json=False, text="\n".join(blocks))


def _lines(values: dict[str, Any]) -> Iterator[str]:
    for key in list_keys(values):
        yield f"  {key.name}  ({key.facts})"
        yield from textwrap.wrap(
            key.description,
            int(min(96, shown_columns())),
            initial_indent="      ",
            subsequent_indent="      ",
        )
