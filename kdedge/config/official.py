"""Applies `official: true`: precision and epoch selection as in PromptKD's public code.

Its other settings are defaults or are in the recipes. The page "What differs from the public code"
has what remains.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from kdedge.config.yaml_file import dotted, dump_value

_KeyPath = tuple[str, ...]

OFFICIAL: Mapping[_KeyPath, object] = {
    # trainers/promptkd.py: CLIP and projector converted to fp16, logits too, no loss scaling
    ("optim", "precision"): "fp16-unscaled",
    ("student", "settings", "float32_losses"): False,
    # configs/trainers/PromptKD: the best epoch on the validation loader, which has test images
    ("student", "optim", "selection"): "test",
}
"""Key -> value in github.com/zhengli97/PromptKD. A recipe must not set another value."""

_ROLES = ("teacher", "student", "baseline")

STABILIZERS: tuple[_KeyPath, ...] = (
    ("optim", "clip_grad_norm"),
    *((role, "optim", "clip_grad_norm") for role in _ROLES),
)
"""Keys that keep training stable and that the public code lacks: they are removed."""


def apply_official(values: object) -> object:
    """Writes the public code's settings into the values of a recipe that says `official: true`.

    Args:
        values: as read, before validation; values of a wrong type are left for validation.

    Raises:
        ValueError: the recipe sets a key of `OFFICIAL` to another value.
    """
    if not isinstance(values, dict) or values.get("official") is not True:
        return values
    values = deepcopy(values)
    for key, value in OFFICIAL.items():
        if key[0] == "optim" or isinstance(values.get(key[0]), dict):
            section = _section(values, key[:-1], make=True)
            if section is not None:
                _check_equal(key, section.setdefault(key[-1], value), value)
    for key in STABILIZERS:
        (_section(values, key[:-1]) or {}).pop(key[-1], None)
    precision = OFFICIAL["optim", "precision"]
    for role in _ROLES:
        own = _section(values, (role, "optim")) or {}
        _check_equal((role, "optim", "precision"), own.get("precision", precision), precision)
    return values


def _section(
    values: dict[str, Any], path: _KeyPath, *, make: bool = False
) -> dict[str, Any] | None:
    """The mapping at a path, created on request; None if there is another kind of value."""
    section = values
    for part in path:
        if make and section.get(part) is None:
            section[part] = {}
        below = section.get(part)
        if not isinstance(below, dict):
            return None
        section = below
    return section


def _check_equal(key: _KeyPath, given: object, value: object) -> None:
    if given != value:
        raise ValueError(
            f"has official: true, which sets {dotted(key)} to {dump_value(value)}, but sets it"
            f" to {dump_value(given)}; remove one of the two"
        )
