"""What a recipe says about exported files: defaults, bounds, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdedge.config.load import dump_recipe, load_recipe, parse_overrides
from kdedge.config.yaml_file import parse_yaml
from kdedge.errors import RecipeError
from kdedge.records.evaluation import Gates

GOOD = """\
name: line3
classes: [cat, dog]
data: {unlabeled: {folder: cams}}
student: {backbone: ViT-B-16, weights: openai}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def test_gates_that_are_not_named_keep_their_defaults(recipe: Path) -> None:
    loaded = load_recipe(
        recipe, {"gates.agreement": {"int8": "97.25%"}, "gates.max_drop": 2}
    ).recipe
    assert loaded.gates.to_gates() == Gates(
        {"fp32": 99.9, "fp16": 99.5, "int8": 97.25}, max_drop=2.0
    )


def test_all_keys_can_be_set_and_survive_a_round_trip(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        GOOD + "export: {precisions: [int8, fp16], head: argmax, pixels: uint8, batch: 4,"
        " max_batch: 8, calibration_images: 64, parity_images: 100, external_data: true}\n"
        "gates: {agreement: {fp32: 100%, fp16: 0%, int8: 90.5%}, max_drop: 0}\n"
    )
    loaded = load_recipe(recipe).recipe
    assert loaded.export.precisions == ("int8", "fp16")
    assert loaded.export.batch == 4
    again = tmp_path / "again.yaml"
    again.write_text(dump_recipe(loaded))
    assert load_recipe(again).recipe == loaded


def test_a_stored_recipe_holds_the_gates_as_percentages(recipe: Path) -> None:
    values, _ = parse_yaml(dump_recipe(load_recipe(recipe).recipe), name="x")
    assert values["gates"]["agreement"] == {
        "fp32": "99.9%",
        "fp16": "99.5%",
        "int8": "98%",
    }
    assert values["export"]["precisions"] == []


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("export.precisions=[fp4]", "export.precisions.0 must be fp16 or int8"),
        ("export.precisions=[fp32]", "must be fp16 or int8"),
        ("export.precisions=fp16", "must be a list"),
        ("export.precisions=[int8, int8]", "int8 more than once"),
        ("export.head=logits", "must be scores or argmax"),
        ("export.pixels=int8", "must be float or uint8"),
        ("export.pixels=unit8", "Did you mean uint8?"),
        ("export.batch=0", "must be dynamic or at least 1"),
        ("export.batch=true", "must be dynamic or a whole number"),
        ("export.batch=dinamic", "Did you mean dynamic?"),
        ("export.batch=64", "has batch: 64, which is more than max_batch: 32; set max_batch: 64"),
        ("export.batch=1025", "at most 1024"),
        ("export.max_batch=0", "at least 1, got 0"),
        ("export.max_batch=1025", "at most 1024, got 1025"),
        ("export.max_batch=8.0", "a whole number"),
        ("export.calibration_images=0", "at least 1"),
        ("export.parity_images=-5", "at least 1"),
        ("export.parity_images=1000001", "at most 1000000"),
        ("export.external_data=1", "true or false"),
        ("export.opset=17", "is not a known key"),
        ("gates.agreement.int8=98", 'must be a percentage such as "5%", at most "100%", got 98'),
        ("gates.agreement.int8=0.98", "got 0.98"),
        ("gates.agreement.int8=101%", 'got "101%"'),
        ("gates.agreement.int8=-1%", 'got "-1%"'),
        ("gates.agreement.int8=98 %", 'got "98 %"'),
        ("gates.agreement.int4=98%", "Did you mean int8?"),
        ("gates.agreement=98%", "must be a mapping"),
        ("gates.max_drop=-0.1", "at least 0"),
        ("gates.max_drop=1%", "must be a number"),
        ("gates.max_drop=.nan", "finite"),
        ("gates.max_dropp=1", "Did you mean max_drop?"),
    ],
)
def test_a_wrong_value_is_named(recipe: Path, override: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, parse_overrides([override]))
    assert override.partition("=")[0].rpartition(".")[0] in str(caught.value)
    assert expected in str(caught.value)
