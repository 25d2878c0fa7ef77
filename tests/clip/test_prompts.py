"""Prompts: texts, context and visual prompts lie where the backbone lies."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kdedge.clip.backbone import Backbone
from kdedge.clip.find import find_backbone
from kdedge.clip.prompts import make_text_prompts, make_visual_prompts, prompted_texts
from kdedge.clip.resolve import BackboneSpec


@pytest.fixture
def elsewhere(tiny_weights: Path) -> Backbone:
    """The tiny CLIP on another device than the one where tensors are made: values it has none."""
    return find_backbone(BackboneSpec(None, str(tiny_weights))).load(device="meta")


@pytest.mark.parametrize("context_init", ["a photo of a", "a"])
def test_prompts_lie_on_the_backbones_device(elsewhere: Backbone, context_init: str) -> None:
    generator = torch.Generator().manual_seed(0)
    names = ["cat", "school bus"]
    texts = prompted_texts(elsewhere, names, n_ctx=2, context_init=context_init)
    text = make_text_prompts(
        elsewhere, n_ctx=2, prompt_depth=2, context_init=context_init, generator=generator
    )
    visual = make_visual_prompts(elsewhere, n_ctx=2, prompt_depth=2, generator=generator)
    tensors = [texts.tokens, texts.end, text.context, text.deep_context, visual]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
