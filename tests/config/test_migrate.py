"""Recipes of version 1: the same settings in today's keys, whoever wrote them where."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge.config.load import dump_recipe, load_recipe
from kdedge.config.migrate import migrate
from kdedge.errors import RecipeError

HEAD = """\
name: r
classes: [a, b]
data: {}
"""


def write(folder: Path, settings: str, *, head: str = HEAD) -> Path:
    path = folder / "r.yaml"
    path.write_text(f"{head}student:\n  weights: s.pt\n  settings: {settings}\n")
    return path


def settings(path: Path, *overrides: str) -> dict[str, Any]:
    student = load_recipe(path, [f"student.settings.{text}" for text in overrides]).recipe.student
    assert student is not None
    return student.settings


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{kd_weight: 200.0}", {"kl": {"weight": 200.0}}),
        (
            "{kd_weight: null, kd_weight_per_image: 2}",
            {"kl": {"weight": None, "weight_per_image": 2}},
        ),
        (
            "{temperature: 1.0, kd_weight: 1000.0}",
            {"kl": {"weight": 1000.0, "temperature": 1.0}},
        ),
        ("{loss: feature}", {"feature": {}}),
        ("{loss: relational, loss_weight: 3.0}", {"relational": {"weight": 3.0}}),
        ("{loss: feature, temperature: 2.0, kd_weight: 5.0}", {"feature": {}}),
        ("{more_losses: {feature: 2.0}}", {"kl": {}, "feature": {"weight": 2.0}}),
        (
            "{loss: interactive, more_losses: {kl: 7, feature: 2}, temperature: 2.0,"
            " kd_weight: 9.0}",
            {
                "interactive": {},
                "kl": {"temperature": 2.0, "weight": 7},
                "feature": {"weight": 2},
            },
        ),
    ],
)
def test_old_keys_become_losses_with_settings(tmp_path: Path, old: str, new: Any) -> None:
    found = settings(write(tmp_path, old))
    assert found == {"losses": new}
    assert list(found["losses"]) == list(new)


def test_the_other_settings_and_recipes_stay_as_they_are(tmp_path: Path) -> None:
    found = settings(write(tmp_path, "{prompt_depth: 2, kd_weight: 1.0}"))
    assert found == {"prompt_depth": 2, "losses": {"kl": {"weight": 1.0}}}
    for values in ({"student": {"settings": {"tune": "full"}}}, {"student": 3}, {"a": 1}):
        assert migrate(values).values == values
    own = {"student": {"method": "other", "settings": {"loss": "feature", "temperature": 2.0}}}
    assert migrate(own).values == own


NAMES = ["kl", "feature", "feature_l1", "relational", "interactive", "affinity"]
PUBLISHED = {"feature": 2000.0, "feature_l1": 100.0}
OPTIONAL = st.none() | st.floats(0.5, 1e4)


def weights_of_version_1(given: dict[str, Any], n_classes: int) -> dict[str, float]:
    """What version 1 made of its settings."""
    name = given.get("loss", "kl")
    weight = given.get("loss_weight")
    if name == "kl":
        weight = given.get("kd_weight")
        if given.get("kd_weight_per_image") is not None:
            weight = given["kd_weight_per_image"] * n_classes
        weight = 1000.0 if weight is None else weight
    elif weight is None:
        weight = PUBLISHED.get(name, 1.0)
    return {name: weight, **given.get("more_losses", {})}


@given(
    loss=st.sampled_from([None, *NAMES]),
    weights=st.fixed_dictionaries(
        {},
        optional={
            "kd_weight": OPTIONAL,
            "temperature": st.floats(0.5, 8),
        },
    ),
    per_image=OPTIONAL,
    loss_weight=OPTIONAL,
    more=st.dictionaries(st.sampled_from(NAMES), st.floats(0.5, 100), max_size=3),
    n_classes=st.integers(1, 1000),
)
def test_every_weight_order_and_temperature_is_that_of_version_1(
    loss: str | None, weights: Any, per_image: Any, loss_weight: Any, more: Any, n_classes: int
) -> None:
    pytest.importorskip("torch")
    from kdedge.methods.promptkd import Settings

    old: dict[str, Any] = dict(weights)
    if loss is not None:
        old["loss"] = loss
    first = loss or "kl"
    if first != "kl" and loss_weight is not None:
        old["loss_weight"] = loss_weight
    if per_image is not None and old.get("kd_weight") is None:
        old["kd_weight_per_image"] = per_image
    more.pop(first, None)
    if more:
        old["more_losses"] = more
    new = migrate({"student": {"settings": old}}).values["student"]["settings"]
    chosen = Settings(**new).losses
    expected = weights_of_version_1(old, n_classes)
    assert list(chosen.weights(n_classes).items()) == list(expected.items())
    if "kl" in expected:
        assert dict(chosen.items())["kl"].temperature == old.get("temperature", 1.0)


@pytest.mark.parametrize(
    ("file", "overrides", "expected"),
    [
        # An old key on the command line lies over the file, in whichever keys that is
        (
            "{losses: {kl: {weight: 9, temperature: 2}}}",
            ["kd_weight=5"],
            {"kl": {"weight": 5, "temperature": 2}},
        ),
        ("{losses: {kl: {weight: 9}}}", ["loss=feature"], {"feature": {}}),
        (
            "{losses: {kl: {weight: 9}}}",
            ["more_losses={feature: 2}"],
            {"kl": {"weight": 9}, "feature": {"weight": 2}},
        ),
        ("{losses: {feature: {}}}", ["loss_weight=2"], {"feature": {"weight": 2}}),
        ("{losses: {feature: {}}}", ["kd_weight=5"], {"feature": {}}),
        ("{kd_weight: 9, loss: feature}", ["loss=kl"], {"kl": {"weight": 9}}),
        # Later overrides win
        ("{kd_weight: 9}", ["losses.kl.weight=4"], {"kl": {"weight": 4}}),
        ("{}", ["losses.kl.weight=4", "kd_weight=5"], {"kl": {"weight": 5}}),
        ("{kd_weight: 9, temperature: 2}", ["losses={feature: {}}"], {"feature": {}}),
    ],
)
def test_overrides_in_old_and_new_keys_mix_with_files_in_either(
    tmp_path: Path, file: str, overrides: list[str], expected: Any
) -> None:
    assert settings(write(tmp_path, file), *overrides) == {"losses": expected}


def test_a_whole_section_on_the_command_line_may_have_old_keys(tmp_path: Path) -> None:
    path = write(tmp_path, "{losses: {kl: {weight: 9}}}")
    student = load_recipe(
        path, ["student={weights: t.pt, settings: {kd_weight: 5}}"]
    ).recipe.student
    assert student is not None
    assert student.settings == {"losses": {"kl": {"weight": 5}}}


def test_a_file_in_both_forms_is_refused_with_the_old_keys_line(tmp_path: Path) -> None:
    path = write(tmp_path, "\n    losses: {kl: {}}\n    kd_weight: 5")
    with pytest.raises(RecipeError, match=r"r\.yaml:8: student\.settings has losses, and kd_wei"):
        load_recipe(path)


@pytest.mark.parametrize("old", ["{loss: 3}", "{more_losses: 3}"])
def test_what_version_1_refused_is_an_unknown_key(tmp_path: Path, old: str) -> None:
    pytest.importorskip("torch")
    from kdedge.setup.method import choose_method

    loaded = load_recipe(write(tmp_path, old))
    with pytest.raises(RecipeError, match=r"r\.yaml:6: student\.settings\.\S+ is not a known key"):
        choose_method(loaded, "student")


def test_a_mistake_in_an_old_key_has_its_line_or_its_option(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from kdedge.setup.method import choose_method

    path = write(tmp_path, "\n    prompt_depth: 2\n    kd_weight: -5\n    more_losses: {fature: 1}")
    with pytest.raises(RecipeError) as caught:
        choose_method(load_recipe(path), "student")
    place, key = "r.yaml:8: student.settings.losses", "r.yaml:9: student.settings.losses"
    assert f"{place}.kl.weight must be more than 0, got -5" in str(caught.value)
    assert f"{key}.fature is not a known key.\n  Did you mean feature?" in str(caught.value)
    override = load_recipe(write(tmp_path, "{}"), ["student.settings.temperature=0"])
    with pytest.raises(RecipeError, match=r"^--set student\.settings\.losses\.kl\.temperature "):
        choose_method(override, "student")


def test_old_keys_are_told_once_with_the_new_form(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "{temperature: 2.0, kd_weight: 200.0}")
    with caplog.at_level(logging.WARNING, logger="kdedge"):
        load_recipe(path)
        load_recipe(path)
    (told,) = caplog.messages
    assert told == (
        f"{path}: student.settings has keys of recipes of version 1 (temperature, kd_weight)."
        " They still work.\n"
        "  The new form, below student.settings: losses: {kl: {weight: 200.0, temperature: 2.0}}"
    )


@pytest.mark.parametrize(
    ("head", "given"),
    [(HEAD, "{losses: {kl: {weight: 200.0}}}"), (f"version: 1\n{HEAD}", "{kd_weight: 200.0}")],
)
def test_a_recipe_that_says_version_1_or_has_the_new_form_is_read_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str, given: str
) -> None:
    path = write(tmp_path, given, head=head)
    with caplog.at_level(logging.WARNING, logger="kdedge"):
        recipe = load_recipe(path).recipe
    assert caplog.messages == []
    assert recipe.version == 2
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path).recipe == recipe


def test_a_version_that_does_not_exist_yet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "{}", head=f"version: 3\n{HEAD}")
    with pytest.raises(RecipeError, match=r"r\.yaml:1: version must be 2, got 3"):
        load_recipe(path)


RECIPE_WITH_LOSSES = """\
name: x
classes: [cat, dog]
data: {}
student: {backbone: kdedge-demo-student, weights: builtin, settings: {losses: LOSSES}}
"""


def _losses_of(tmp_path: Path, losses: str, *overrides: str) -> dict[str, Any]:
    file = tmp_path / "r.yaml"
    file.write_text(RECIPE_WITH_LOSSES.replace("LOSSES", losses))
    recipe = load_recipe(file, overrides).recipe
    assert recipe.student is not None
    return recipe.student.settings["losses"]


def test_of_old_and_new_keys_on_a_command_line_the_later_wins(tmp_path: Path) -> None:
    old, new = "student.settings.kd_weight=3", "student.settings.losses.kl.weight=5"
    assert _losses_of(tmp_path, "{kl: {}}", old, new) == {"kl": {"weight": 5}}
    assert _losses_of(tmp_path, "{kl: {}}", new, old) == {"kl": {"weight": 3}}
    whole = "student.settings={losses: {kl: {}}}"
    assert _losses_of(tmp_path, "{kl: {}}", whole, old) == {"kl": {"weight": 3}}


def test_an_old_key_of_a_loss_that_is_not_used_is_said_to_have_no_effect(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert _losses_of(tmp_path, "{feature: {}}", "student.settings.kd_weight=3") == {"feature": {}}
    assert "student.settings.kd_weight has no effect: kl is not among the losses." in caplog.text


def test_a_loss_that_is_no_mapping_is_left_for_validation(tmp_path: Path) -> None:
    found = _losses_of(tmp_path, "{kl: 5}", "student.settings.temperature=2")
    assert found == {"kl": 5}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("loss=feature", "more_losses={feature: 1}"), "feature as loss and among more_losses"),
        (("loss=kl", "loss_weight=2"), "loss_weight with loss: kl, whose weight is kd_weight"),
    ],
)
def test_what_version_1_refused_is_refused_with_its_reason(
    tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        _losses_of(tmp_path, "{kl: {}}", *(f"student.settings.{text}" for text in overrides))
