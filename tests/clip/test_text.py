"""The text encoder: fewer positions, chunks, context tokens; the plain computation's numbers."""

from __future__ import annotations

import pytest
import torch
from open_clip import CLIP
from torch import Tensor

from kdedge.clip.backbone import Backbone
from kdedge.clip.prompts import prompted_texts
from kdedge.clip.text import TokenizedTexts, encode_text, in_chunks, tokenize
from kdedge.errors import DataError

FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
NAMES = ["cat", "golden_retriever", "suspension bridge over a river", "pizza", 'a, "b" & ü', "x"]
TEXTS = [f"a photo of a {name}." for name in NAMES]


def tokens_of(backbone: Backbone, texts: list[str]) -> TokenizedTexts:
    return tokenize(backbone.tokenizer, texts, context_length=backbone.context_length)


def encode_plainly(model: torch.nn.Module, tokens: Tensor, context: Tensor, deep: Tensor) -> Tensor:
    """IVLP's convention over all 77 positions, whole blocks, read at the largest token id."""
    n_ctx = context.shape[0]
    length = tokens.shape[1]
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = model.token_embedding(tokens)
    x = torch.cat([x[:, :1], context.expand(len(x), -1, -1), x[:, 1 + n_ctx :]], dim=1)
    x = x + model.positional_embedding
    for index, block in enumerate(model.transformer.resblocks):
        if 1 <= index <= len(deep):
            shared = deep[index - 1].expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], shared, x[:, 1 + n_ctx :]], dim=1)
        x = block(x, attn_mask=mask)
    x = model.ln_final(x)
    return x[torch.arange(len(x)), tokens.argmax(-1)] @ model.text_projection


def test_tokens_are_those_of_open_clips_tokenizer_without_the_padding(
    tiny_backbone: Backbone,
) -> None:
    ours = tokens_of(tiny_backbone, TEXTS)
    theirs = tiny_backbone.tokenizer(TEXTS)
    length = ours.tokens.shape[1]
    assert torch.equal(ours.tokens, theirs[:, :length])
    assert not theirs[:, length:].any()
    assert torch.equal(ours.end, theirs.argmax(-1))
    assert length == int(theirs.argmax(-1).max()) + 1


def test_a_text_longer_than_the_context_is_an_error_that_names_it(tiny_backbone: Backbone) -> None:
    name = "very " * 80 + "long name"
    with pytest.raises(DataError, match="needs 84 tokens, but this CLIP has only 77 positions"):
        tokens_of(tiny_backbone, ["cat", name])


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n_ctx", [1, 4])
def test_short_texts_and_end_queries_change_no_feature_and_no_gradient(
    tiny_backbone: Backbone, tiny_open_clip: CLIP, depth: int, n_ctx: int
) -> None:
    model = tiny_backbone.model
    generator = torch.Generator().manual_seed(3)
    context = torch.randn(n_ctx, 64, generator=generator).requires_grad_()
    deep = torch.randn(depth - 1, n_ctx, 64, generator=generator).requires_grad_()
    texts = prompted_texts(tiny_backbone, NAMES, n_ctx=n_ctx, context_init="a photo of a")
    padded = torch.zeros(len(NAMES), 77, dtype=torch.int64)
    padded[:, : texts.tokens.shape[1]] = texts.tokens

    features = encode_text(model, texts, context=context, deep_context=deep)
    expected = encode_plainly(tiny_open_clip, padded, context, deep)

    torch.testing.assert_close(features, expected, **FLOAT32)
    target = torch.randn(features.shape, generator=generator)
    parameters = [context, deep]
    ours, plain = (
        torch.autograd.grad(
            (value * target).sum(), parameters, allow_unused=True, materialize_grads=True
        )
        for value in (features, expected)
    )
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, **FLOAT32)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 6, 100])
def test_chunks_change_no_feature_and_no_gradient(tiny_backbone: Backbone, chunk_size: int) -> None:
    model = tiny_backbone.model
    texts = prompted_texts(tiny_backbone, NAMES, n_ctx=2, context_init="a photo of a")
    target = torch.randn(len(NAMES), 24, generator=torch.Generator().manual_seed(5))

    def run(size: int) -> tuple[Tensor, Tensor]:
        context = torch.randn(2, 64, generator=torch.Generator().manual_seed(4)).requires_grad_()
        features = in_chunks(
            lambda rows: encode_text(model, texts[rows], context=context),
            len(NAMES),
            chunk_size=size,
        )
        (gradient,) = torch.autograd.grad((features * target).sum(), [context])
        return features, gradient

    features, gradient = run(chunk_size)
    whole_features, whole_gradient = run(len(NAMES))
    torch.testing.assert_close(features, whole_features, **FLOAT32)
    torch.testing.assert_close(gradient, whole_gradient, **FLOAT32)


def test_a_chunk_keeps_no_activations_for_the_backward_pass(tiny_backbone: Backbone) -> None:
    """What a forward pass saves must not grow with the number of classes, beyond the features."""

    def saved_bytes(n_classes: int) -> int:
        texts = prompted_texts(
            tiny_backbone, [f"cat {i % 10}" for i in range(n_classes)], n_ctx=2, context_init="a b"
        )
        context = torch.zeros(2, 64).requires_grad_()
        saved = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal saved
            saved += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            in_chunks(
                lambda rows: encode_text(tiny_backbone.model, texts[rows], context=context),
                n_classes,
                chunk_size=8,
            )
        return saved

    few, many = saved_bytes(16), saved_bytes(160)
    one_class_activations = 10 * 64 * 4
    assert many - few < 144 * one_class_activations
