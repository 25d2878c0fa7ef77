"""Validation errors -> messages with file:line, got and expected, and the nearest known name."""

from __future__ import annotations

import re
import types
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdedge.config.yaml_file import KeyPath, LineMap, dotted, resolve_scalar
from kdedge.errors import RecipeError
from kdedge.messages import nearest, suggestion

_MAX_SHOWN = 10

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "is_instance_of": "a path",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "dict_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain_validation(
    error: ValidationError,
    *,
    model: type[BaseModel],
    lines: LineMap,
    prefix: tuple[str | int, ...] = (),
    what: str = "recipe",
) -> RecipeError:
    """Turns pydantic's errors into one error that lists up to ten problems in file order.

    Args:
        error: the error of the validation.
        model: the model that was validated against; its fields are the known names.
        lines: the line of each key.
        prefix: key path of the validated value within the recipe.
        what: the kind of file, for messages.
    """
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        path = _follow_location(model, details["loc"]).path
        grouped.setdefault(path, []).append(details)
    ordered = sorted(grouped.items(), key=lambda item: lines.line((*prefix, *item[0])))
    messages = []
    for path, problems in ordered[:_MAX_SHOWN]:
        full = (*prefix, *path)
        where = lines.where(full)
        name = dotted(full) or f"the {what}"
        subject = where if lines.override(full) == full else f"{where}: {name}"
        messages.append(f"{subject} {_problem(model, path, problems)}")
    if len(ordered) > _MAX_SHOWN:
        messages.append(f"and {len(ordered) - _MAX_SHOWN} more problems in this {what}.")
    return RecipeError("\n".join(messages))


def _problem(model: type[BaseModel], path: KeyPath, problems: Sequence[ErrorDetails]) -> str:
    """The problem of a key and its remedy, as the end of a sentence that begins with the key."""
    problem = problems[0]
    if problem["type"] in {"extra_forbidden", "missing"}:
        parent = _follow_location(model, path[:-1]).model
        key = str(path[-1])
        fields = {} if parent is None else parent.model_fields
        if problem["type"] == "missing":
            about = fields[key].description if key in fields else None
            return f"is missing.\n  {about}" if about else "is missing."
        known = sorted(field.alias or name for name, field in fields.items())
        all_known = f"Known keys: {', '.join(known)}."
        otherwise = all_known if known else "This section takes no keys; remove it."
        return f"is not a known key.\n  {suggestion(key, known, otherwise)}"
    if problem["type"] in {"value_error", "assertion_error"}:
        return f"{problem['ctx']['error']}."
    expected = " or ".join(dict.fromkeys(map(_expected, problems)))
    got = problem["input"]
    return f"must be {expected}, got {_show(got)}.{_hint(problems, got)}"


def _expected(problem: ErrorDetails) -> str:
    kind = problem["type"]
    ctx = problem.get("ctx", {})
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = ctx[key]
        return f"{words} {bound:g}" if isinstance(bound, float) else f"{words} {bound}"
    if kind == "literal_error":
        return str(ctx["expected"]).replace("'", "")
    if kind == "string_pattern_mismatch":
        return f"text of the form {ctx['pattern']}"
    if kind in {"string_too_short", "too_short"}:
        unit = "characters" if kind == "string_too_short" else "entries"
        return f"at least {ctx['min_length']} {unit} long"
    return _EXPECTED.get(kind, f"valid ({problem['msg']})")


def _hint(problems: Sequence[ErrorDetails], got: Any) -> str:
    kinds = {problem["type"] for problem in problems}
    if isinstance(got, str):
        choices: list[str] = []
        for problem in problems:
            if problem["type"] == "literal_error":
                expected = str(problem.get("ctx", {}).get("expected", ""))
                choices += re.findall(r"'([^']*)'", expected)
        guess = nearest(got, choices)
        if guess is not None:
            return f"\n  Did you mean {guess}?"
        is_quoted = not isinstance(resolve_scalar(got), str)
        if is_quoted and kinds & {"int_type", "float_type", "bool_type"}:
            return "\n  Write it without quotes."
    elif "string_type" in kinds and isinstance(got, int | float):
        return "\n  Put it in quotes."
    return ""


def _show(value: Any) -> str:
    """Shows a value as a recipe spells it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list" if value else "an empty list"
    text = f'"{value}"' if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Location(NamedTuple):
    """Where an error is.

    Attributes:
        path: the keys, without the names of union members that pydantic appends.
        model: the model at the end of the path; None if another type is there.
    """

    path: KeyPath
    model: type[BaseModel] | None


def _follow_location(model: type[BaseModel], location: Sequence[str | int]) -> _Location:
    """Follows an error's location through the types of a model."""
    path: list[str | int] = []
    current: Any = model
    for part in location:
        if get_origin(current) is dict and str(part).startswith(("literal[", "dict[")):
            continue  # the name of a union's member
        if not _has_keys(current) and not isinstance(part, int):
            break
        path.append(part)
        if _is_model(current):
            field = current.model_fields.get(part)
            current = None if field is None else _core(field.annotation)
        elif get_origin(current) in {dict, list, tuple}:
            arguments = get_args(current)
            is_mapping = get_origin(current) is dict
            current = _core(arguments[1] if is_mapping else arguments[0])
        else:
            current = None
    return _Location(tuple(path), current if _is_model(current) else None)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _has_keys(annotation: Any) -> bool:
    return _is_model(annotation) or get_origin(annotation) is dict


def _core(annotation: Any) -> Any:
    """A type without Annotated and None; of a union, its first model or mapping."""
    if get_origin(annotation) is Annotated:
        return _core(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        members = [_core(member) for member in get_args(annotation) if member is not type(None)]
        return next((member for member in members if _has_keys(member)), members[0])
    return annotation
