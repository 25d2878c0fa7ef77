"""Every number of a recipe has an upper bound, so that a typing error is told and not computed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import annotated_types
import pytest
from pydantic import BaseModel, BeforeValidator, ValidationError

from kdedge.config.recipe import Recipe
from kdedge.methods.losses import Losses
from kdedge.methods.registry import list_methods, load_method
from kdedge.paper.suite.spec import Suite


def unbounded(model: type[BaseModel]) -> Iterator[str]:
    """The fields of a model, and of models in it, with a number that has no upper bound."""
    for name, field in model.model_fields.items():
        if any(isinstance(one, BeforeValidator) for one in field.metadata):
            continue  # a percentage or a count, which has bounds of its own
        for problem in _unbounded(field.annotation, field.metadata):
            yield f"{model.__module__}.{model.__qualname__}.{name}{problem}"


def _unbounded(annotation: Any, metadata: list[Any]) -> Iterator[str]:
    if annotation in (int, float):
        if not any(isinstance(one, annotated_types.Le | annotated_types.Lt) for one in metadata):
            yield ""
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from (f": {problem}" for problem in unbounded(annotation))
    elif get_origin(annotation) is Annotated:
        inner, *others = get_args(annotation)
        if any(isinstance(one, BeforeValidator) for one in others):
            return
        facts = [fact for one in others for fact in getattr(one, "metadata", [one])]
        yield from _unbounded(inner, [*metadata, *facts])
    else:
        for inner in get_args(annotation):
            yield from _unbounded(inner, metadata)


@pytest.mark.parametrize("model", [Recipe, Suite, Losses])
def test_each_number_of_a_recipe_has_an_upper_bound(model: type[BaseModel]) -> None:
    assert not list(unbounded(model))


@pytest.mark.parametrize("method", list_methods())
def test_each_number_of_a_method_s_settings_has_an_upper_bound(method: str) -> None:
    assert not list(unbounded(load_method(method).Settings))


@pytest.mark.parametrize(
    ("method", "setting", "value"),
    [("ridge", "n_random", 10**20), ("ridge", "labeled_weight", 1e308)],
)
def test_a_number_above_its_bound_is_refused(method: str, setting: str, value: float) -> None:
    with pytest.raises(ValidationError, match="less than or equal"):
        load_method(method).Settings(**{setting: value})
