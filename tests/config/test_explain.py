"""Validation errors of any model are explained with the recipe's lines."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdedge.config.explain import explain_validation
from kdedge.config.yaml_file import LineMap


class Settings(BaseModel):
    """Settings of a made-up method."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kd_weight: float | None = Field(None, gt=0)
    prompt_depth: int = Field(9, ge=1, description="Layers.")


LINES = LineMap(
    "r.yaml",
    {("student", "settings"): 9, ("student", "settings", "kd_wieght"): 12},
    frozenset(),
)


def explain(values: dict[str, object]) -> str:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(values)
    error = explain_validation(
        caught.value, model=Settings, lines=LINES, prefix=("student", "settings")
    )
    return str(error)


def test_a_methods_settings_are_explained_under_their_place_in_the_recipe():
    assert explain({"kd_wieght": 1}) == (
        "r.yaml:12: student.settings.kd_wieght is not a known key.\n  Did you mean kd_weight?"
    )
