"""The keys of a settings model in words, from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TYPES = {
    "integer": "whole number",
    "boolean": "true | false",
    "string": "text",
    "array": "list",
    "object": "mapping",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
# A model's own optim has the same keys as the shared one, which is explained once.
_SAME_AS_OPTIM = frozenset({"teacher.optim", "student.optim", "baseline.optim"})


@dataclass(frozen=True)
class RecipeKey:
    """A key of a recipe.

    Attributes:
        name: dotted name, as `--set` takes it.
        facts: type, bounds, and the default or `required`.
        description: what it does and where its default comes from.
    """

    name: str
    facts: str
    description: str


def list_keys(
    root: dict[str, Any], node: dict[str, Any] | None = None, prefix: str = ""
) -> Iterator[RecipeKey]:
    """Explains every key of a pydantic model's JSON schema, nested ones after their parent.

    Args:
        root: the schema.
        node: a model within it; None for the whole schema.
        prefix: text before the names of that model's keys.
    """
    node = root if node is None else node
    required = node.get("required", [])
    for key, field in node.get("properties", {}).items():
        name = f"{prefix}{key}"
        inner = _model(root, field)
        facts = _facts(root, field, is_required=key in required)
        yield RecipeKey(name, facts, field.get("description", ""))
        if inner is not None and name not in _SAME_AS_OPTIM:
            yield from list_keys(root, inner, f"{name}.")


def _facts(root: dict[str, Any], field: dict[str, Any], *, is_required: bool) -> str:
    facts = [_type(root, field)]
    if is_required:
        facts.append("required")
    elif not isinstance(field.get("default"), dict | None):
        default = field["default"]
        if isinstance(default, bool):
            default = str(default).lower()
        facts.append(f"default {default}")
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
    kind = str(field.get("type", "any"))
    kind = "path" if field.get("format") == "path" else _TYPES.get(kind, kind)
    bounds = [f"{words} {field[key]:.12g}" for key, words in _BOUNDS.items() if key in field]
    return f"{kind} {', '.join(bounds)}".strip()


def _model(root: dict[str, Any], field: dict[str, Any]) -> dict[str, Any] | None:
    """The model that a field refers to; None if the field has another type."""
    for option in [field, *field.get("anyOf", []), *field.get("allOf", [])]:
        if "$ref" in option:
            model: dict[str, Any] = root["$defs"][option["$ref"].rpartition("/")[2]]
            return model
    return None
