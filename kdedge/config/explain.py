"""Validation errors -> messages with file:line, got and expected, and the nearest known name."""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kdedge.config._yaml import KeyPath, LineMap, dotted, resolve_scalar
from kdedge.errors import RecipeError

MAX_SHOWN = 10

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


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Gives the known name that is most like the given one, if any is."""
    names = list(known)
    lower = {candidate.lower(): candidate for candidate in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return lower[found[0]] if found else None


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
        error: what validating raised.
        model: the model that was validated against; its fields are the known names.
        lines: where each key stands.
        prefix: key path of the validated value within the recipe.
        what: the kind of file, for messages.
    """
    grouped: dict[KeyPath, list[ErrorDetails]] = {}
    for details in error.errors(include_url=False):
        grouped.setdefault(_key_path(model, details["loc"]), []).append(details)
    ordered = sorted(grouped.items(), key=lambda item: lines.line((*prefix, *item[0])))
    messages = [
        _message(model, path, problems, lines, prefix) for path, problems in ordered[:MAX_SHOWN]
    ]
    if len(ordered) > MAX_SHOWN:
        messages.append(f"and {len(ordered) - MAX_SHOWN} more problems in this {what}.")
    return RecipeError("\n".join(messages))


def _message(
    model: type[BaseModel],
    path: KeyPath,
    problems: Sequence[ErrorDetails],
    lines: LineMap,
    prefix: KeyPath,
) -> str:
    full = (*prefix, *path)
    where = lines.where(full)
    name = dotted(full) or "the recipe"
    subject = where if where == f"--set {name}" else f"{where}: {name}"
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return _unknown_key(subject, str(path[-1]), _model_at(model, path[:-1]))
    if first["type"] == "missing":
        return _missing_key(subject, _model_at(model, path[:-1]), str(path[-1]))
    if first["type"] in {"value_error", "assertion_error"}:
        return f"{subject} {first['ctx']['error']}."
    expected = " or ".join(dict.fromkeys(_expected(problem) for problem in problems))
    got = first["input"]
    return f"{subject} must be {expected}, got {_show(got)}.{_hint(problems, got)}"


def _unknown_key(subject: str, key: str, model: type[BaseModel] | None) -> str:
    known = sorted(_field_names(model)) if model is not None else []
    guess = nearest(key, known)
    if guess is not None:
        return f"{subject} is not a known key.\n  Did you mean {guess}?"
    if not known:
        return f"{subject} is not a known key.\n  Nothing can be set here; remove it."
    return f"{subject} is not a known key.\n  Known here: {', '.join(known)}."


def _missing_key(subject: str, model: type[BaseModel] | None, key: str) -> str:
    field = model.model_fields.get(key) if model is not None else None
    about = f"\n  {field.description}" if field is not None and field.description else ""
    return f"{subject} is missing.{about}"


def _expected(problem: ErrorDetails) -> str:
    kind, ctx = problem["type"], problem.get("ctx", {})
    bounds = {
        "greater_than": ("more than", "gt"),
        "greater_than_equal": ("at least", "ge"),
        "less_than": ("less than", "lt"),
        "less_than_equal": ("at most", "le"),
    }
    if kind in bounds:
        words, key = bounds[kind]
        return f"{words} {ctx[key]:g}" if isinstance(ctx[key], float) else f"{words} {ctx[key]}"
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
        choices = [
            choice
            for problem in problems
            if problem["type"] == "literal_error"
            for choice in re.findall(r"'([^']*)'", str(problem.get("ctx", {}).get("expected", "")))
        ]
        guess = nearest(got, choices)
        if guess is not None:
            return f"\n  Did you mean {guess}?"
        if kinds & {"int_type", "float_type", "bool_type"} and not isinstance(
            resolve_scalar(got), str
        ):
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


def _field_names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _key_path(model: type[BaseModel], location: Sequence[str | int]) -> KeyPath:
    """Drops what pydantic adds to a location that is no key: the names of a union's members."""
    path: list[str | int] = []
    current: Any = model
    for part in location:
        if _is_leaf(current) and not isinstance(part, int):
            break
        path.append(part)
        current = _below(current, part)
    return tuple(path)


def _model_at(model: type[BaseModel], path: KeyPath) -> type[BaseModel] | None:
    current: Any = model
    for part in path:
        current = _below(current, part)
    return current if _is_model(current) else None


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_leaf(annotation: Any) -> bool:
    return not _is_model(annotation) and get_origin(annotation) is not dict


def _below(annotation: Any, part: str | int) -> Any:
    """The type of a mapping's key or a list's entry."""
    if _is_model(annotation):
        field = annotation.model_fields.get(part)
        return _core(field.annotation) if field is not None else None
    arguments = get_args(annotation)
    if get_origin(annotation) is dict:
        return _core(arguments[1])
    return _core(arguments[0]) if get_origin(annotation) in {list, tuple} else None


def _core(annotation: Any) -> Any:
    """A type without Annotated and None; of a union, its first model or mapping."""
    if get_origin(annotation) is Annotated:
        return _core(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        members = [_core(member) for member in get_args(annotation) if member is not type(None)]
        return next((member for member in members if not _is_leaf(member)), members[0])
    return annotation
