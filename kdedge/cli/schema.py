"""Explain every key of a recipe, or print the JSON schema."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator
from typing import Any

import click

from kdedge.cli._output import json_option, print_result, shown_columns
from kdedge.cli.methods import load_all
from kdedge.config.recipe import Recipe
from kdedge.methods.registry import list_methods
from kdedge.targets.table import target_records

_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


@click.command("schema")
@json_option
def command(as_json: bool) -> None:
    """Explain every key of a recipe: type, bounds, default and where the default comes from.

    With --json: the JSON schema of a recipe, each method's settings under "methods", and what
    `kdedge export` can make under "targets".
    """
    schema = Recipe.model_json_schema()
    methods, targets = _method_schemas(), target_records()
    if as_json:
        print_result({**schema, "methods": methods, "targets": targets}, as_json=True)
        return
    blocks = ["Recipe", *_explain(schema, schema, "")]
    for name, settings in methods.items():
        blocks += ["", f"settings of the method {name}", *_explain(settings, settings, "")]
    blocks += ["", "targets of kdedge export"]
    for name, target in targets.items():
        blocks += [f"  {name}  ({', '.join(target['precisions'])})", f"      {target['help']}"]
    print_result(None, as_json=False, text="\n".join(blocks))


def _method_schemas() -> dict[str, Any]:
    """Each method's settings; a method that cannot be imported is named on stderr."""
    modules, problems = load_all(list_methods())
    for problem, names in problems.items():
        logging.getLogger("kdedge").warning(
            "The settings of %s are left out.\n  %s", ", ".join(names), problem
        )
    return {name: module.Settings.model_json_schema() for name, module in modules.items()}


def _explain(root: dict[str, Any], node: dict[str, Any], prefix: str) -> Iterator[str]:
    required = node.get("required", [])
    for key, field in node.get("properties", {}).items():
        name = f"{prefix}{key}"
        inner = _model(root, field)
        yield f"  {name}  ({_facts(root, field, is_required=key in required)})"
        yield from textwrap.wrap(
            field.get("description", ""),
            int(min(96, shown_columns())),
            initial_indent="      ",
            subsequent_indent="      ",
        )
        # A model's own optim has the same keys as the shared one, which is explained once.
        if inner is not None and name not in {"teacher.optim", "student.optim", "baseline.optim"}:
            yield from _explain(root, inner, f"{name}.")


def _facts(root: dict[str, Any], field: dict[str, Any], *, is_required: bool) -> str:
    facts = [_type(root, field)]
    if is_required:
        facts.append("required")
    elif not isinstance(field.get("default"), dict | None):
        default = field["default"]
        facts.append(f"default {str(default).lower() if isinstance(default, bool) else default}")
    return ", ".join(facts)


def _type(root: dict[str, Any], field: dict[str, Any]) -> str:
    if _model(root, field) is not None:
        return "mapping"
    if "const" in field:
        return str(field["const"])
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    if "anyOf" in field:
        kinds = [_type(root, option) for option in field["anyOf"] if option.get("type") != "null"]
        return " | ".join(kinds)
    if "items" in field:
        return f"list of {_type(root, field['items'])}"
    kind = {"integer": "whole number", "boolean": "true | false", "string": "text"}.get(
        field.get("type", ""), {"array": "list", "object": "mapping"}.get(field.get("type", ""))
    )
    if field.get("format") == "path":
        kind = "path"
    bounds = [f"{words} {_number(field[key])}" for key, words in _BOUNDS.items() if key in field]
    return " ".join([kind or str(field.get("type", "any")), ", ".join(bounds)]).strip()


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _model(root: dict[str, Any], field: dict[str, Any]) -> dict[str, Any] | None:
    """The model that a field refers to, if it is one."""
    for option in [field, *field.get("anyOf", []), *field.get("allOf", [])]:
        if "$ref" in option:
            model: dict[str, Any] = root["$defs"][option["$ref"].rpartition("/")[2]]
            return model
    return None
