"""Validation errors of any model are explained with the recipe's lines."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdedge.config.explain import explain_validation
from kdedge.config.yaml_file import LineMap
from kdedge.errors import nearest


class Settings(BaseModel):
    """Settings of a made-up method."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kd_weight: float | None = Field(None, gt=0)
    prompt_depth: int = Field(9, ge=1, description="Layers.")
    mode: Literal["a", "b"] | int = "a"
    sizes: list[int] = []

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.prompt_depth == 99:
            raise ValueError("asks for too many layers")
        return self


LINES = LineMap(
    "r.yaml",
    {("student", "settings"): 9, ("student", "settings", "kd_wieght"): 12},
    frozenset({("student", "settings", "prompt_depth")}),
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


def test_an_overridden_setting_is_named_by_its_flag():
    assert explain({"prompt_depth": 0}) == (
        "overrides: student.settings.prompt_depth must be at least 1, got 0."
    )


def test_a_key_that_resembles_none_is_answered_with_all_that_are_known():
    assert "Known keys: kd_weight, mode, prompt_depth, sizes." in explain({"zzz": 1})


def test_a_check_of_the_whole_model_stands_at_its_key():
    assert explain({"prompt_depth": 99}) == ("r.yaml:9: student.settings asks for too many layers.")


def test_a_union_is_one_problem_with_all_that_it_accepts():
    assert explain({"mode": "c"}) == (
        'r.yaml:9: student.settings.mode must be a or b or a whole number, got "c".'
    )


def test_an_entry_of_a_list_is_named_by_its_position():
    assert explain({"sizes": [1, "x"]}) == (
        'r.yaml:9: student.settings.sizes.1 must be a whole number, got "x".'
    )


def test_nearest_ignores_case_and_gives_none_for_strangers():
    assert nearest("VIT-b-16", ["ViT-B-16", "RN50"]) == "ViT-B-16"
    assert nearest("zebra", ["ViT-B-16", "RN50"]) is None
