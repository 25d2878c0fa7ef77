"""What methods and losses declare: defaults, bounds, and how their authors optimize them.

A default or a preset that changes by accident gives the same recipe another result. One that is
meant to change is changed in tests/golden/declared.txt too.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from kdedge.methods.losses import list_losses, load_loss
from kdedge.methods.registry import list_methods, load_method

GOLDEN = (Path(__file__).parents[1] / "golden/declared.txt").read_text(encoding="utf-8")


def without_texts(schema: Any) -> Any:
    """A JSON schema without its titles and descriptions."""
    if isinstance(schema, list):
        return [without_texts(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    texts = ("description", "title")
    return {key: without_texts(value) for key, value in schema.items() if key not in texts}


def settings(name: str, module: Any) -> dict[str, Any]:
    """Name of a setting -> its type, default and bounds, as JSON schema says them."""
    properties = module.Settings.model_json_schema()["properties"]
    return {f"{name}.{key}": without_texts(schema) for key, schema in properties.items()}


def declared(name: str) -> dict[str, Any]:
    """What a method says of itself and of each of its settings."""
    module = load_method(name)
    values = dataclasses.asdict(dataclasses.replace(module.METHOD, optim=None))
    if module.METHOD.optim is not None:
        values["optim"] = module.METHOD.optim.model_dump(exclude_unset=True)
    return {name: values, **settings(name, module)}


def stated(name: str) -> dict[str, Any]:
    lines = [line.partition(": ") for line in GOLDEN.splitlines()]
    own = {key: text for key, _, text in lines if f"{key}.".startswith(f"{name}.")}
    return {key: json.loads(text) for key, text in own.items()}


def unstated(name: str, values: dict[str, Any]) -> str:
    """The lines that the file lacks, to copy."""
    known = stated(name)
    lines = [f"{key}: {json.dumps(now)}" for key, now in values.items() if known.get(key) != now]
    return "\n".join(["In tests/golden/declared.txt it would be:", *lines])


@pytest.mark.parametrize("name", list_methods())
def test_a_methods_defaults_bounds_and_preset_are_the_stated_ones(name: str) -> None:
    assert declared(name) == stated(name), unstated(name, declared(name))


@pytest.mark.parametrize("name", list_losses())
def test_a_losss_defaults_and_bounds_are_the_stated_ones(name: str) -> None:
    values = settings(f"losses.{name}", load_loss(name))
    assert values == stated(f"losses.{name}"), unstated(f"losses.{name}", values)
