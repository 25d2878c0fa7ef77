"""How many parameters each prompt method trains at the published sizes; no weights are needed."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch
from torch import nn

from kdedge.clip.architecture import build_clip
from kdedge.clip.backbone import Backbone
from kdedge.clip.class_vectors import TextFeatureCache
from kdedge.methods.base import MethodInputs
from kdedge.methods.registry import load_method
from kdedge.runtime.preprocess import Preprocess

COUNTS = [
    ("coop", "ViT-B-16", {"n_ctx": 4}, 2_048),
    ("coop", "ViT-B-16", {"n_ctx": 16}, 8_192),
    ("cocoop", "ViT-B-16", {}, 35_360),
    ("vpt", "ViT-B-16", {}, 73_728),
    ("ivlp", "ViT-B-16", {}, 46_080),
    ("maple", "ViT-B-16", {}, 3_555_072),
    ("maple", "ViT-L-14", {}, 7_100_928),
    ("clip_pr", "ViT-B-16", {}, 82_432),
    ("lafter", "ViT-B-16", {}, 79_360),
]


def empty_backbone(name: str) -> Backbone:
    """All sizes of a CLIP and none of its values but the logit scale."""
    model = build_clip(name, dict(open_clip.get_model_config(name)))
    model.logit_scale = nn.Parameter(torch.zeros(()), requires_grad=False)
    return Backbone(
        name=name,
        visual=model.visual,
        preprocess=Preprocess(size_px=224, mean=(0.5,) * 3, std=(0.5,) * 3),
        identity="",
        embed_dim=model.text_projection.shape[1],
        is_trained_with_texts=True,
        model=model,
        tokenizer=open_clip.SimpleTokenizer(),
        text_cache=TextFeatureCache(None),
    )


@pytest.mark.parametrize(("method", "backbone", "settings", "count"), COUNTS)
def test_a_method_trains_as_many_parameters_as_published(
    method: str, backbone: str, settings: dict[str, Any], count: int
) -> None:
    module = load_method(method)
    if "context_init" in module.Settings.model_fields:
        settings = {"context_init": "", **settings}
    built = module.Method(
        empty_backbone(backbone),
        module.Settings(**settings),
        MethodInputs(
            ["cat", "dog"], "a photo of a {}.", range(1), torch.Generator().manual_seed(1)
        ),
    )
    assert sum(p.numel() for p in built.trainable_parameters().values()) == count
