"""What `official: true` writes into a recipe: how PromptKD's public code trains and chooses.

Everything else that it does is in the recipes, or the default, already. Not taken over: losses of
the methods that learn from labels stay in float32, and only trained tensors are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_KeyPath = tuple[str, ...]

OFFICIAL: Mapping[_KeyPath, object] = {
    # trainers/promptkd.py: CLIP converted to fp16, losses in the features' format, no loss scaling
    ("optim", "precision"): "fp16-unscaled",
    ("student", "settings", "float32_losses"): False,
    # configs/trainers/PromptKD: the best epoch on the validation loader, which has test images
    ("student", "optim", "selection"): "test",
}
"""Key -> value; github.com/zhengli97/PromptKD. A recipe must not say other."""

_ROLES = ("teacher", "student", "baseline")

STEADYING: tuple[_KeyPath, ...] = (
    ("student", "settings", "losses", "kl", "max_weight_per_image"),
    ("optim", "clip_grad_norm"),
    *((role, "optim", "clip_grad_norm") for role in _ROLES),
)
"""What recipes have for a steady training and that code has not: it is taken out of them."""


def write_out(values: object) -> object:
    """A recipe's values with those of the public code, where it says `official: true`.

    Args:
        values: as read, before validation; what is not understood is left for that to refuse.

    Raises:
        ValueError: a key of `OFFICIAL` has another value.
    """
    if not isinstance(values, dict) or values.get("official") is not True:
        return values
    written = dict(values)
    for key, value in OFFICIAL.items():
        if key[0] == "optim" or isinstance(values.get(key[0]), dict):
            _write(written, key, value)
    for key in STEADYING:
        _leave_out(written, key)
    for role in _ROLES:
        model = written.get(role)
        own = model.get("optim") if isinstance(model, dict) else None
        if isinstance(own, dict) and "precision" in own:
            key = (role, "optim", "precision")
            _check_equal(key, own["precision"], OFFICIAL["optim", "precision"])
    return written


def _write(values: dict[str, Any], key: _KeyPath, value: object) -> None:
    """Sets a key in copies of the mappings on the way to it."""
    target = values
    for part in key[:-1]:
        below = target.get(part)
        if below is not None and not isinstance(below, dict):
            return
        target[part] = dict(below or {})
        target = target[part]
    _check_equal(key, target.get(key[-1], value), value)
    target[key[-1]] = value


def _leave_out(values: dict[str, Any], key: _KeyPath) -> None:
    """Takes a key, where it is given, out of copies of the mappings on the way to it."""
    target = values
    for part in key[:-1]:
        below = target.get(part)
        if not isinstance(below, dict):
            return
        target[part] = dict(below)
        target = target[part]
    target.pop(key[-1], None)


def _check_equal(key: _KeyPath, given: object, value: object) -> None:
    if given != value:
        raise ValueError(
            f"has official: true, which sets {'.'.join(key)} to {_shown(value)}, and gives it as"
            f" {_shown(given)}; leave one of the two out"
        )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
