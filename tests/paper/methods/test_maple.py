"""MaPLe: visual prompts as maps of the text prompts, first values, what is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdedge.clip.backbone import Backbone

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
Build = Callable[..., Any]


def test_visual_prompts_are_the_text_prompts_through_each_layers_coupling(
    build: Build, tiny_teacher_backbone: Backbone
) -> None:
    module = build("maple", tiny_teacher_backbone).module
    prompts = [module.text_prompts.context, *module.text_prompts.deep_context]
    expected = [
        prompt @ coupling.weight.T + coupling.bias
        for prompt, coupling in zip(prompts, module.couplings, strict=True)
    ]
    assert module.visual_prompts().shape == (3, 2, 128)
    torch.testing.assert_close(module.visual_prompts(), torch.stack(expected), **FLOAT32)


def test_deep_couplings_start_alike_and_learn_apart(build: Build, labeled_batch: Any) -> None:
    """They are copies of one module in the authors' code; the first layer's has its own values."""
    method = build("maple")
    first, second, third = method.module.couplings
    assert torch.equal(second.weight, third.weight)
    assert not torch.equal(first.weight, second.weight)
    assert float(first.weight.detach().abs().max()) == pytest.approx(64**-0.5, rel=0.01)
    method.training_step(labeled_batch()).loss.backward()
    assert not torch.equal(second.weight.grad, third.weight.grad)


def test_words_beyond_the_context_stay_in_the_text(build: Build, tiny_backbone: Backbone) -> None:
    method = build("maple")
    table = tiny_backbone.model.token_embedding.weight
    assert torch.equal(method.module.text_prompts.context, table[[320, 1125]])
    # start, "a photo of a cat.", end
    assert method.texts.tokens[0, :8].tolist() == [49406, 320, 1125, 539, 320, 2368, 269, 49407]
