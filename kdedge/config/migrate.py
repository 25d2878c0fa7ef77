"""Migrates recipes of version 1 to version 2.

Version 2 moved the losses of a promptkd student into `student.settings.losses`, each with settings
of its own. Recipes and run folders of version 1 keep their meaning:

| version 1 | version 2, below student.settings |
|---|---|
| `loss: X`, `loss_weight: W` | `losses: {X: {weight: W}}` |
| `more_losses: {Y: V}` | `losses: {X: {...}, Y: {weight: V}}` |
| `kd_weight`, `kd_weight_per_image` | `losses.kl`: `weight`, `weight_per_image` |
| `temperature` | `losses.kl.temperature` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdedge.config.yaml_file import KeyPath, dump_value
from kdedge.errors import RecipeError

VERSION = 2
"""The version of recipes that `kdedge.config.recipe` describes."""

SETTINGS: tuple[str, ...] = ("student", "settings")

_KL = {
    "kd_weight": "weight",
    "kd_weight_per_image": "weight_per_image",
    "temperature": "temperature",
}
OLD_KEYS = frozenset({"loss", "loss_weight", "more_losses", *_KL})


@dataclass(frozen=True)
class Migrated:
    """A recipe in the keys of version 2.

    Attributes:
        values: the recipe.
        moved: place of a new key -> place of the old key that it came from.
        new_form: the new keys as a recipe spells them; empty if nothing moved.
        unused: old keys without effect: settings of kl where it is not among the losses.
    """

    values: dict[str, Any]
    moved: Mapping[KeyPath, KeyPath]
    new_form: str = ""
    unused: tuple[str, ...] = ()


def old_keys(values: Mapping[str, Any]) -> list[str]:
    """The version 1 keys among a recipe's student settings, in order."""
    settings = _settings(values)
    return [key for key in settings or {} if key in OLD_KEYS]


def has_losses(values: Mapping[str, Any]) -> bool:
    """Whether a recipe's student settings have the key of version 2."""
    return "losses" in (_settings(values) or {})


def migrate(values: Mapping[str, Any]) -> Migrated:
    """Rewrites a recipe of version 1; one of version 2 stays as it is.

    Old keys beside `losses` override it: they come from the command line.

    Args:
        values: as read, before validation, which refuses what is not understood here.

    Raises:
        RecipeError: version 1 refused this combination of keys.
    """
    result = dict(values)
    if result.get("version") == 1:
        result["version"] = VERSION
    settings = _settings(values)
    if settings is None or not old_keys(values):
        return Migrated(result, {})
    found = _losses(settings)
    if found is None:
        return Migrated(result, {})
    losses, moved = found
    kept = {key: value for key, value in settings.items() if key not in OLD_KEYS}
    result["student"] = {**result["student"], "settings": {**kept, "losses": losses}}
    places: dict[KeyPath, KeyPath] = {
        (*SETTINGS, "losses", *new): (*SETTINGS, old) for new, old in moved.items()
    }
    unused = () if "kl" in losses else tuple(key for key in _KL if key in settings)
    return Migrated(result, places, f"losses: {dump_value(losses)}", unused)


def _settings(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of a promptkd student; None if the recipe has none."""
    student = values.get("student")
    if not isinstance(student, dict) or student.get("method", "promptkd") != "promptkd":
        return None
    settings = student.get("settings")
    return settings if isinstance(settings, dict) else None


def _losses(
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[tuple[str, ...], str]] | None:
    """The losses of version 1 keys, and each place's old key; None if a value has a wrong type."""
    before = settings.get("losses", {"kl": {}})
    more = settings.get("more_losses", {})
    first = settings.get("loss", next(iter(before), "kl") if isinstance(before, dict) else None)
    if not isinstance(before, dict) or not isinstance(more, dict) or not isinstance(first, str):
        return None
    if not all(one is None or isinstance(one, dict) for one in before.values()):
        return None
    if first in more:
        raise RecipeError(
            f"student.settings has {first} as loss and among more_losses.\n  Name it once, below"
            " losses."
        )
    if first == "kl" and "loss_weight" in settings:
        raise RecipeError(
            "student.settings has loss_weight with loss: kl, whose weight is kd_weight.\n"
            "  Write it as losses: {kl: {weight: ...}}."
        )
    kl = {new: settings[old] for old, new in _KL.items() if old in settings}
    moved: dict[tuple[str, ...], str] = {
        ("kl", new): old for old, new in _KL.items() if old in settings
    }
    losses: dict[str, Any] = {first: dict(before.get(first) or {})}
    if "loss" in settings:
        moved[(first,)] = "loss"
    else:
        losses |= {name: dict(one or {}) for name, one in before.items()}
    if "loss_weight" in settings:
        losses[first]["weight"] = settings["loss_weight"]
        moved[first, "weight"] = "loss_weight"
    for name, weight in more.items():
        # Version 1 gave an added kl its own weight, without a limit, and the shared temperature
        shared = {**(before.get(name) or {}), **kl} if name == "kl" else {}
        losses[name] = {k: v for k, v in shared.items() if k == "temperature"} | {"weight": weight}
        moved[name, "weight"] = moved[(name,)] = "more_losses"
    if "kl" in losses and "kl" not in more:
        losses["kl"] |= kl
    if "kl" not in losses:
        moved = {new: old for new, old in moved.items() if new[0] != "kl"}
    return losses, moved
