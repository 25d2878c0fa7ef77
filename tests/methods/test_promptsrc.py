"""PromptSRC: averaging weights, the text anchor, what is trained, what the settings do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip import OPENAI_IMAGENET_TEMPLATES
from pydantic import ValidationError
from torch import Tensor

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.methods import promptsrc

NAMES = ["cat", "dog", "school_bus", "fox"]
Build = Callable[..., Any]


def test_the_averaging_weights_are_the_published_ones() -> None:
    """Mean 15, deviation 1, 20 epochs: .399 at 15, .242 beside it (PromptSRC's code)."""
    weights = promptsrc.gaussian_weights(20, mean_epoch=15, std_epochs=1)
    assert sum(weights) == pytest.approx(1)
    expected = {15: 0.399, 14: 0.242, 16: 0.242, 13: 0.054, 17: 0.054, 12: 0.0044, 18: 0.0044}
    for epoch, weight in expected.items():
        assert weights[epoch - 1] == pytest.approx(weight, abs=5e-4)
    assert weights[9] == pytest.approx(1.5e-6, rel=0.05)
    wide = promptsrc.gaussian_weights(20, mean_epoch=15, std_epochs=2)
    assert wide[16] / wide[14] == pytest.approx(0.6065, abs=1e-4)  # exp(-1 / 2)


@pytest.mark.parametrize("mean_epoch", [-1e6, 500, 1e6])
@pytest.mark.parametrize("std_epochs", [0.001, 1e6])
def test_the_outermost_averaging_settings_give_weights(
    mean_epoch: float, std_epochs: float
) -> None:
    settings = promptsrc.Settings(averaging_mean_epoch=mean_epoch, averaging_std_epochs=std_epochs)
    weights = promptsrc.gaussian_weights(
        3, mean_epoch=settings.averaging_mean_epoch, std_epochs=settings.averaging_std_epochs
    )
    assert sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    "given", [{"averaging_mean_epoch": 1e200}, {"averaging_std_epochs": 1e-200}]
)
def test_averaging_settings_whose_squares_no_float_holds_are_refused(given: dict) -> None:
    with pytest.raises(ValidationError, match="should be"):
        promptsrc.Settings(**given)


def test_the_anchor_averages_raw_features_and_scales_once(tiny_backbone: Backbone) -> None:
    raw = torch.stack(
        [
            tiny_backbone.text_features_raw([make(name) for name in ["cat", "school bus"]])
            for make in OPENAI_IMAGENET_TEMPLATES[:3]
        ]
    )
    anchor = promptsrc.text_anchor(tiny_backbone, ["cat", "school_bus"], 3)
    torch.testing.assert_close(anchor, unit_length(raw.mean(0)))
    assert not torch.allclose(anchor, unit_length(unit_length(raw).mean(0)), atol=1e-6)


def test_the_unprompted_image_encoder_is_the_backbones_own(
    build: Build, labeled_batch: Any, tiny_backbone: Backbone
) -> None:
    method, batch = build("promptsrc", image_loss_weight=1.0), labeled_batch()
    unprompted = tiny_backbone.image_features(batch.images)
    distance = (method.training_features(batch.images) - unprompted).abs().mean()
    torch.testing.assert_close(method.losses(batch)["image"], distance)


def test_context_starts_as_the_words_embeddings(build: Build, tiny_backbone: Backbone) -> None:
    table: Tensor = tiny_backbone.model.token_embedding.weight
    context = build("promptsrc").module.text_prompts.context
    assert torch.equal(context, table[[320, 1125, 539, 320]])
    longer = build("promptsrc", n_ctx_text=6).module.text_prompts.context
    assert longer.shape == (6, 64)
    assert float(longer.detach().std()) == pytest.approx(0.02, rel=0.2)


def test_the_order_of_class_names_permutes_the_class_vectors_only(build: Build) -> None:
    order = [2, 0, 3, 1]
    turned = build("promptsrc", names=[NAMES[i] for i in order]).class_vectors()
    expected = build("promptsrc", names=NAMES).class_vectors()[order]
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-4)
