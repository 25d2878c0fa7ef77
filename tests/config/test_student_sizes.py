"""Students by size: recipes that load, of towers that open_clip builds and knows weights of."""

from __future__ import annotations

import open_clip
import pytest

from kdedge.api.arguments import load_for
from kdedge.clip.architecture import build_image_encoder
from kdedge.config.student_sizes import SIZES
from kdedge.errors import RecipeError


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_a_tower_with_weights_and_as_many_parameters_as_stated(name: str) -> None:
    size = SIZES[name]
    assert size.weights in open_clip.list_pretrained_tags_by_model(size.backbone)
    config = open_clip.get_model_config(size.backbone)
    assert config is not None
    tower = build_image_encoder(size.backbone, config, device="meta")
    n_parameters = sum(one.numel() for one in tower.parameters())
    assert n_parameters / 1e6 == pytest.approx(size.n_parameters, abs=0.05)


@pytest.mark.parametrize("name", SIZES)
def test_a_shipped_recipe_takes_a_size_and_further_settings_go_before_it(name: str) -> None:
    given = {"student.settings.tune": "projector"}
    student = load_for("student", "sun397", given, size=name).recipe.student
    assert (student.backbone, student.weights) == (SIZES[name].backbone, SIZES[name].weights)
    assert student.settings["tune"] == "projector"
    # What the recipe says of its own weights does not hold for these
    assert {"student.config", "student.quick_gelu"} <= SIZES[name].overrides("ridge").keys()
    plain = load_for("student", "sun397", None, size=name).recipe.student
    assert plain.settings.get("tune", "prompts") == ("prompts" if name == "base" else "full")


def test_an_unknown_size_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no student of size smal; sizes are nano, small, base"):
        load_for("student", "sun397", None, size="smal")
