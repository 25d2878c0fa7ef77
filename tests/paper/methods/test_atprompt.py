"""ATPrompt: where its words and its context stand, what deep layers replace, and its two forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from kdedge.clip.backbone import Backbone, unit_length
from kdedge.errors import RecipeError
from kdedge.paper.methods import atprompt

NAMES = ["cat", "dog", "school_bus", "fox"]
Build = Callable[..., Any]
COOP: dict[str, Any] = {
    "self_regulation": False,
    "prompt_depth_text": 1,
    "n_ctx_vision": 0,
    "n_ctx_text": 2,
    "context_init": "",
}


def slow_text_features(backbone: Backbone, method: atprompt.Method, name: str) -> Tensor:
    """[D]: "V V color V V shape W W W NAME." token by token, through open_clip-like blocks."""
    model, encode = backbone.model, backbone.tokenizer.encode
    attribute, prompts = method.module.attribute_context, method.module.text_prompts
    embed = model.token_embedding.weight
    rows = [embed[[backbone.tokenizer.sot_token_id]]]
    rows += [attribute[:2], embed[encode("color")], attribute[2:], embed[encode("shape")]]
    at = sum(len(row) for row in rows)
    rows += [prompts.context, embed[encode(name)], embed[encode(".")]]
    rows += [embed[[backbone.tokenizer.eot_token_id]]]
    tokens = torch.cat(rows)
    tokens = (tokens + model.positional_embedding[: len(tokens)])[None]
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    for index, block in enumerate(model.transformer.resblocks):
        if index == 1:  # of depth 2: the name's context is replaced, the attributes' stays
            deep = prompts.deep_context
            tokens = torch.cat([tokens[:, :at], deep, tokens[:, at + 3 :]], dim=1)
        tokens = block(tokens, attn_mask=causal)
    return unit_length(model.ln_final(tokens[:, -1]) @ model.text_projection)[0]


def test_a_text_has_its_context_before_each_attribute_and_before_the_name(
    build: Build, tiny_backbone: Backbone
) -> None:
    method = build("atprompt")
    with torch.no_grad():
        method.module.attribute_context.mul_(30)
        expected = [slow_text_features(tiny_backbone, method, n.replace("_", " ")) for n in NAMES]
        torch.testing.assert_close(
            method.class_vectors(), torch.stack(expected), atol=1e-5, rtol=1e-4
        )


def test_an_attribute_may_have_several_tokens(tiny_backbone: Backbone) -> None:
    settings = atprompt.Settings(
        n_ctx_attribute=2, n_ctx_text=3, attributes=["watercourse bed", "shape"]
    )
    texts = atprompt.anchored_texts(tiny_backbone, NAMES, settings)
    n_tokens = len(tiny_backbone.tokenizer.encode("watercourse bed"))
    assert n_tokens > 1
    first = 3 + n_tokens
    at = [1, 2, first, first + 1, *range(first + 3, first + 6)]
    assert texts.context_at.tolist() == at
    words = tiny_backbone.tokenizer.encode("watercourse bed")
    assert texts.tokens[0, 3:first].tolist() == words


def test_its_loss_is_promptsrcs_with_these_texts(build: Build, labeled_batch: Any) -> None:
    method, batch = build("atprompt"), labeled_batch()
    losses = method.losses(batch)
    assert torch.equal(method.training_step(batch).loss, sum(losses.values()))
    features = method.training_features(batch.images)
    logits = method.scale * features @ method.class_vectors()[:2].T
    expected = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(losses["cross_entropy"], expected, atol=1e-4, rtol=1e-4)
    assert len(method.averaging_weights(20)) == 20


def test_with_coop_it_is_cross_entropy_of_text_context_alone(
    build: Build, labeled_batch: Any, tiny_backbone: Backbone
) -> None:
    method, batch = build("atprompt", **COOP), labeled_batch()
    output = method.training_step(batch)
    logits = method.scale * tiny_backbone.image_features(batch.images)
    logits = logits @ method.class_vectors()[:2].T
    expected = F.cross_entropy(logits, batch.labels)
    torch.testing.assert_close(output.loss, expected, atol=1e-4, rtol=1e-4)
    output.loss.backward()
    learned = {name for name, p in method.trainable_parameters().items() if p.numel()}
    assert learned == {"attribute_context", "text_prompts.context"}
    assert method.averaging_weights(20) is None
    # The attributes change what CoOp's texts say
    plain = build("coop", names=NAMES, n_ctx=2, context_init="")
    assert not torch.allclose(method.class_vectors(), plain.class_vectors(), atol=1e-2)


@pytest.mark.parametrize("attributes", [[], [" "], ["shape"] * 17])
def test_attributes_that_are_none_or_too_many_are_refused(attributes: list[str]) -> None:
    with pytest.raises(ValidationError, match="attributes"):
        atprompt.Settings(attributes=attributes)


def test_context_that_does_not_fit_beside_a_name_is_an_error(build: Build) -> None:
    with pytest.raises(
        RecipeError, match=r"take 85 positions, but the class name \"school_bus\" leaves 72 of"
    ):
        build("atprompt", n_ctx_attribute=40)
