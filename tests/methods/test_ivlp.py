"""IVLP: which texts are seen when, what is trained, what the settings do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdedge.clip.backbone import Backbone
from kdedge.data.batch import Batch
from kdedge.errors import DataError, RecipeError
from kdedge.methods import ivlp
from kdedge.methods.protocol import Inputs

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
TINY = {"prompt_depth_text": 2, "prompt_depth_vision": 2}
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""


def build(backbone: Backbone, n_trained: int = 2, **chosen: Any) -> ivlp.Method:
    return ivlp.Method.build(
        backbone,
        ivlp.Settings(**{**TINY, **chosen}),
        Inputs(NAMES, "unused {}", range(n_trained), torch.Generator().manual_seed(1)),
    )


def batch(n: int = 4) -> Batch:
    images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.arange(n) % 2)


def test_training_sees_the_texts_of_trained_classes_and_evaluation_all(
    tiny_backbone: Backbone,
) -> None:
    method = build(tiny_backbone)
    logits = method.logits(batch().images)
    assert logits.shape == (4, 2)
    assert method.class_vectors().shape == (4, 24)
    expected = method.scale * method.forward_features(batch().images) @ method.class_vectors().T
    torch.testing.assert_close(logits, expected[:, :2], **FLOAT32)


def test_every_prompt_learns_and_the_backbone_stays_frozen(tiny_backbone: Backbone) -> None:
    method = build(tiny_backbone)
    parameters = method.trainable_parameters()
    assert {name: tuple(p.shape) for name, p in parameters.items()} == {
        "visual_prompts": (2, 4, 64),
        "text_prompts.context": (4, 64),
        "text_prompts.deep_context": (1, 4, 64),
    }
    method.training_step(batch()).loss.backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in parameters.values())
    assert all(p.grad is None for p in tiny_backbone.model.parameters())
    assert method.image_path().visual_prompts is method.module.visual_prompts


def test_five_steps_give_the_pinned_losses(
    tiny_backbone: Backbone, five_steps: Callable[..., list[float]]
) -> None:
    method = build(tiny_backbone)
    losses = five_steps(method, batch(), lr=0.01)
    assert losses == pytest.approx(PINNED, rel=1e-4)


PINNED = [0.895665, 2.46053, 0.834929, 0.806826, 0.782582]


def test_more_prompted_layers_than_there_are_is_an_error(tiny_backbone: Backbone) -> None:
    with pytest.raises(RecipeError, match="prompt_depth_text is 9, but the text encoder"):
        build(tiny_backbone, prompt_depth_text=9)
    with pytest.raises(RecipeError, match="prompt_depth_vision is 9, but the image encoder"):
        build(tiny_backbone, prompt_depth_vision=9)


def test_a_context_that_leaves_no_room_for_the_longest_name_is_an_error(
    tiny_backbone: Backbone,
) -> None:
    with pytest.raises(RecipeError, match=r"n_ctx_text is 73, .* room for only 72 context tokens"):
        build(tiny_backbone, n_ctx_text=73)


def test_images_without_labels_are_an_error(tiny_backbone: Backbone) -> None:
    with pytest.raises(DataError, match="learns from labeled images"):
        build(tiny_backbone).training_step(Batch(batch().images, None))
