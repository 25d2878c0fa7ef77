"""CoOp: where the class name stands, one context or one a class, what is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from open_clip import CLIP
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.clip.text import CHUNK_SIZE, encode_text
from kdedge.errors import RecipeError

NAMES = ["cat", "school_bus", "fox", "golden retriever"]
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""
Build = Callable[..., Any]


def encode_plainly(
    model: CLIP, encode: Callable[[str], list[int]], name: str, context: Tensor
) -> Tensor:
    """One text: start token, context, name, full stop, end, padding."""
    table = model.token_embedding.weight
    start, word, stop = table[[49406]], table[encode(name.replace("_", " "))], table[[269, 49407]]
    x = torch.cat([start, context, word, stop])
    end = len(x) - 1
    x = torch.cat([x, table[[0] * (77 - len(x))]]) + model.positional_embedding
    mask = torch.full((77, 77), float("-inf")).triu(1)
    x = x[None]
    for block in model.transformer.resblocks:
        x = block(x, attn_mask=mask)
    return model.ln_final(x)[0, end] @ model.text_projection


@pytest.mark.parametrize("is_specific", [False, True])
@pytest.mark.parametrize("n_ctx", [1, 4, 5])
def test_texts_are_encoded_as_the_paper_says(
    build: Build, tiny_backbone: Backbone, tiny_open_clip: CLIP, n_ctx: int, is_specific: bool
) -> None:
    chosen = {"n_ctx": n_ctx, "context_init": "", "class_specific": is_specific}
    method = build("coop", n_trained=4, **chosen)
    context = method.module.context
    own = list(context) if is_specific else [context] * len(NAMES)
    expected = torch.stack(
        [
            encode_plainly(tiny_open_clip, tiny_backbone.tokenizer.encode, name, tokens)
            for name, tokens in zip(NAMES, own, strict=True)
        ]
    )
    features = method.text_features(method.texts)
    torch.testing.assert_close(features, unit_length(expected), **FLOAT32)
    target = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (ours,) = torch.autograd.grad((features * target).sum(), [context])
    (plain,) = torch.autograd.grad((unit_length(expected) * target).sum(), [context])
    torch.testing.assert_close(ours, plain, **FLOAT32)


def test_a_context_of_each_class_is_encoded_in_chunks_with_the_same_gradient(
    build: Build, labeled_batch: Any, tiny_backbone: Backbone
) -> None:
    names = [f"class {number}" for number in range(CHUNK_SIZE + 6)]
    chosen = {"class_specific": True, "n_ctx": 6}
    method = build("coop", names=names, n_trained=len(names), **chosen)
    images, context = replace(labeled_batch(), labels=torch.arange(4)), method.module.context
    texts = encode_text(tiny_backbone.model, method.texts, context=context)
    features = method.forward_features(images.images)
    logits = method.scale * features @ unit_length(texts).T
    expected = nn.functional.cross_entropy(logits, images.labels)
    sizes = []
    count = tiny_backbone.model.ln_final.register_forward_hook(
        lambda _, inputs, __: sizes.append(len(inputs[0]))
    )
    loss = method.training_step(images).loss
    count.remove()
    assert sizes == [CHUNK_SIZE, 6]
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [context])
    (plain,) = torch.autograd.grad(expected, [context])
    torch.testing.assert_close(gradient, plain, **FLOAT32)


def test_the_context_starts_as_words_or_at_random(build: Build, tiny_backbone: Backbone) -> None:
    table = tiny_backbone.model.token_embedding.weight
    words = table[[320, 1125, 539, 320]]
    assert torch.equal(build("coop").module.context, words)
    specific = build("coop", n_trained=4, class_specific=True).module.context
    assert torch.equal(specific, words.expand(4, -1, -1))
    drawn = build("coop", n_ctx=16).module.context.detach()
    assert drawn.shape == (16, 64)
    assert float(drawn.std()) == pytest.approx(0.02, rel=0.2)
    own = build("coop", n_trained=4, n_ctx=16, class_specific=True).module.context.detach()
    assert own.shape == (4, 16, 64)
    assert not torch.equal(own[0], own[1])


def test_class_specific_contexts_need_every_class_trained(build: Build) -> None:
    with pytest.raises(RecipeError, match="2 of 4 classes are not trained"):
        build("coop", class_specific=True)
