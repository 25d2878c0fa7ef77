"""VPT: against prompts that are ordinary tokens of every block; frozen texts; what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip import CLIP
from pydantic import ValidationError
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.methods import ivlp, promptkd
from kdedge.paper.methods import lafter, vpt

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_logits_loss_and_gradient_are_those_of_prompts_as_ordinary_tokens(
    build: Callable[..., Any],
    labeled_batch: Any,
    plain_features: Callable[..., Any],
    tiny_backbone: Backbone,
    tiny_open_clip: CLIP,
    depth: int,
) -> None:
    method, batch = build("vpt", prompt_depth=depth), labeled_batch()
    images, labels = batch.images, batch.labels
    prompts = method.module.visual_prompts.detach().clone().requires_grad_()
    image_features = unit_length(plain_features(tiny_open_clip.visual, images, prompts))
    tokens = tiny_backbone.tokenizer(["a photo of a cat.", "a photo of a school bus."])
    text_features = unit_length(tiny_open_clip.encode_text(tokens))
    expected = method.scale * image_features @ text_features.T
    loss = F.cross_entropy(expected, labels)
    loss.backward()

    torch.testing.assert_close(
        method.class_logits(method.training_features(images)), expected, **FLOAT32
    )
    step = method.training_step(batch)
    torch.testing.assert_close(step.loss, loss, **FLOAT32)
    step.loss.backward()
    torch.testing.assert_close(method.module.visual_prompts.grad, prompts.grad, **FLOAT32)


@pytest.mark.parametrize("method", [ivlp, lafter, promptkd, vpt])
def test_a_slip_of_digits_in_the_number_of_prompts_is_refused(method: Any) -> None:
    method.Settings(n_ctx_vision=1000)
    with pytest.raises(ValidationError, match="less than or equal to 1000"):
        method.Settings(n_ctx_vision=1001)
