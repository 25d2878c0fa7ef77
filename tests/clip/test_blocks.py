"""Attention of separate linear layers: open_clip's numbers, and what wraps a layer takes effect."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from open_clip import CLIP
from open_clip.transformer import QuickGELU, ResidualAttentionBlock, Transformer
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from kdedge.clip.backbone import Backbone
from kdedge.clip.blocks import AttentionBlock, is_plain, make_wrappable, weight_and_bias
from kdedge.clip.text import TokenizedTexts, encode_text, tokenize
from kdedge.clip.vision import encode_image
from kdedge.errors import RecipeError

WIDTH, N_HEADS = 24, 3
LINEARS = ["attn.q", "attn.k", "attn.v", "attn.out", "mlp.c_fc", "mlp.c_proj"]
FLOAT64 = {"atol": 1e-12, "rtol": 1e-12}
FLOAT32 = {"atol": 1e-5, "rtol": 1e-4}
"""Sums in another order."""


class Doubled(nn.Module):
    """A parametrization: twice the stored values."""

    def forward(self, values: Tensor) -> Tensor:
        return 2 * values


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def make_block(activation: type[nn.Module], layer_scale: float | None) -> ResidualAttentionBlock:
    """open_clip's block in float64, every value drawn."""
    torch.manual_seed(0)
    block = ResidualAttentionBlock(
        WIDTH, N_HEADS, ls_init_value=layer_scale, act_layer=activation
    ).double()
    for seed, parameter in enumerate(block.parameters()):
        parameter.data = 0.5 * draw(*parameter.shape, seed=seed)
    return block


def replace_layer(block: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(block.get_submodule(parent), last, layer)


@pytest.mark.parametrize("activation", [QuickGELU, nn.GELU])
@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_a_block_is_open_clips_multi_head_attention_and_mlp(
    activation: type[nn.Module], layer_scale: float | None
) -> None:
    theirs = make_block(activation, layer_scale)
    ours = AttentionBlock(copy.deepcopy(theirs))
    tokens = draw(2, 5, WIDTH, seed=100).requires_grad_()
    may_look = torch.ones(5, 5, dtype=torch.bool).tril()
    blocked = torch.zeros(5, 5, dtype=torch.float64).masked_fill(~may_look, float("-inf"))
    target = draw(2, 5, WIDTH, seed=101)

    expected = theirs(tokens, attn_mask=blocked)
    actual = ours(tokens, attn_mask=may_look)

    torch.testing.assert_close(actual, expected, **FLOAT64)
    (expected_gradient,) = torch.autograd.grad(expected, tokens, target, retain_graph=True)
    (gradient,) = torch.autograd.grad(actual, tokens, target, retain_graph=True)
    torch.testing.assert_close(gradient, expected_gradient, **FLOAT64)
    expected.backward(target)
    actual.backward(target)
    fused = theirs.attn.in_proj_weight.grad, theirs.attn.in_proj_bias.grad
    split = ours.attn.q, ours.attn.k, ours.attn.v
    torch.testing.assert_close(torch.cat([p.weight.grad for p in split]), fused[0], **FLOAT64)
    torch.testing.assert_close(torch.cat([p.bias.grad for p in split]), fused[1], **FLOAT64)
    for name in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        torch.testing.assert_close(
            ours.get_submodule(name).weight.grad, theirs.get_submodule(name).weight.grad, **FLOAT64
        )


def test_queries_and_memory_give_what_all_tokens_give_at_those_places() -> None:
    theirs = make_block(QuickGELU, None)
    ours = AttentionBlock(copy.deepcopy(theirs))
    tokens, memory = draw(2, 5, WIDTH, seed=100), draw(3, WIDTH, seed=101)
    together = torch.cat([tokens, memory.expand(2, -1, -1)], dim=1)
    expected = theirs(together)
    torch.testing.assert_close(ours(tokens, memory=memory), expected[:, :5], **FLOAT64)
    torch.testing.assert_close(
        ours(tokens, queries=tokens[:, :1], memory=memory), expected[:, :1], **FLOAT64
    )


def test_a_step_can_be_inserted_between_attention_and_mlp() -> None:
    block = AttentionBlock(make_block(QuickGELU, 0.3))
    tokens = draw(2, 5, WIDTH, seed=100)
    attended, _ = block.attend(tokens, queries=tokens[:, :3], memory=None, attn_mask=None)
    torch.testing.assert_close(
        block.feed_forward(attended), block(tokens, queries=tokens[:, :3]), rtol=0, atol=0
    )
    assert block.feed_forward(attended[:, :2]).shape == (2, 2, WIDTH)


def test_replacing_blocks_twice_changes_nothing_more() -> None:
    transformer = Transformer(WIDTH, 2, N_HEADS)
    make_wrappable(transformer)
    blocks = list(transformer.resblocks)
    make_wrappable(transformer)
    assert all(now is before for now, before in zip(transformer.resblocks, blocks, strict=True))


def test_open_clips_own_image_encoder_runs_on_these_blocks(tiny_open_clip: CLIP) -> None:
    visual = copy.deepcopy(tiny_open_clip.visual)
    make_wrappable(visual.transformer)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(visual(images), tiny_open_clip.visual(images), **FLOAT32)


def test_the_six_layers_are_plain_linear_modules(tiny_backbone: Backbone) -> None:
    for transformer in (tiny_backbone.model.transformer, tiny_backbone.model.visual.transformer):
        for block in transformer.resblocks:
            assert all(type(block.get_submodule(name)) is nn.Linear for name in LINEARS)


# What is hung on a layer takes effect


def features_of(model: CLIP, tokens: Tensor, images: Tensor, end: Tensor) -> dict[str, Tensor]:
    prompts = torch.ones(2, 1, 64)
    return {
        "image": encode_image(model.visual, images, prompts),
        "text": encode_text(model, TokenizedTexts(tokens, end)),
    }


def double_by_hook(block: nn.Module, name: str) -> None:
    block.get_submodule(name).register_forward_hook(lambda layer, given, output: 2 * output)


def double_by_pre_hook(block: nn.Module, name: str) -> None:
    """Doubles the input, and the bias by hand."""
    layer = block.get_submodule(name)
    layer.bias.data *= 2
    layer.register_forward_pre_hook(lambda layer, given: (2 * given[0],))


def double_by_parametrization(block: nn.Module, name: str) -> None:
    for tensor in ("weight", "bias"):
        register_parametrization(block.get_submodule(name), tensor, Doubled())


def double_by_wrapper(block: nn.Module, name: str) -> None:
    class Twice(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, tokens: Tensor) -> Tensor:
            return 2 * self.layer(tokens)

    replace_layer(block, name, Twice(block.get_submodule(name)))


def double_by_subclass(block: nn.Module, name: str) -> None:
    class Twice(nn.Linear):
        def forward(self, tokens: Tensor) -> Tensor:
            return 2 * super().forward(tokens)

    layer = block.get_submodule(name)
    twice = Twice(layer.in_features, layer.out_features)
    twice.load_state_dict(layer.state_dict())
    replace_layer(block, name, twice.requires_grad_(layer.weight.requires_grad))


def double_by_replaced_forward(block: nn.Module, name: str) -> None:
    layer = block.get_submodule(name)
    forward = layer.forward
    layer.forward = lambda tokens: 2 * forward(tokens)  # as quantizers of loaded models do


@pytest.mark.parametrize(
    ("double", "name"),
    [
        *((double_by_wrapper, name) for name in LINEARS),
        (double_by_hook, "attn.q"),
        (double_by_pre_hook, "attn.k"),
        (double_by_parametrization, "attn.v"),
        (double_by_subclass, "attn.q"),
        (double_by_replaced_forward, "attn.v"),
    ],
)
def test_what_doubles_a_layer_acts_in_both_encoders_and_on_gradients(
    tiny_backbone: Backbone, double: Callable[[nn.Module, str], None], name: str
) -> None:
    texts = tokenize(tiny_backbone.tokenizer, ["a cat", "a red fox"], context_length=77)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for is_wrapped in (True, False):
        model = copy.deepcopy(tiny_backbone.model)
        for transformer in (model.transformer, model.visual.transformer):
            block = transformer.resblocks[1]
            if is_wrapped:
                double(block, name)
            else:
                block.get_submodule(name).weight.data *= 2
                block.get_submodule(name).bias.data *= 2
        reached = [model.visual.conv1.weight, model.token_embedding.weight]
        for parameter in reached:
            parameter.requires_grad_()
        features = features_of(model, texts.tokens, images, texts.end)
        sum(one.square().sum() for one in features.values()).backward()
        found.append((features, [parameter.grad for parameter in reached]))
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    plain = features_of(tiny_backbone.model, texts.tokens, images, texts.end)
    for kind, value in plain.items():
        assert not torch.allclose(found[0][0][kind], value, atol=1e-3)


def test_a_hook_on_a_gradient_sees_it(tiny_backbone: Backbone) -> None:
    visual = copy.deepcopy(tiny_backbone.model.visual)
    seen: list[str] = []
    block = visual.transformer.resblocks[0]
    for name in LINEARS:
        block.get_submodule(name).register_full_backward_hook(
            lambda layer, before, after, name=name: seen.append(name)
        )
    images = torch.randn(2, 3, 32, 32).requires_grad_()
    encode_image(visual, images).sum().backward()
    assert sorted(seen) == sorted(LINEARS)


# What a layer computes, as weight and bias


def test_a_parametrized_layers_weight_is_the_effective_one() -> None:
    layer = nn.Linear(5, 3)
    register_parametrization(layer, "weight", Doubled())
    assert is_plain(layer)
    weight, _ = weight_and_bias(layer, 5)
    assert torch.equal(weight, 2 * layer.parametrizations.weight.original.double())


def test_a_wrapped_layers_weight_is_what_it_computes() -> None:
    first, second = nn.Linear(5, 4), nn.Linear(4, 3)
    weight, bias = weight_and_bias(nn.Sequential(first, second), 5)
    a, b = first.weight.double(), second.weight.double()
    torch.testing.assert_close(weight, b @ a, **FLOAT64)
    torch.testing.assert_close(bias, b @ first.bias.double() + second.bias.double(), **FLOAT64)
    assert first.weight.dtype == torch.float32


def test_a_layer_without_bias_has_a_bias_of_zero(tiny_backbone: Backbone) -> None:
    layer = nn.Linear(5, 3, bias=False)
    weight, bias = weight_and_bias(layer, 5)
    torch.testing.assert_close(weight, layer.weight.double())
    assert not bias.any()
    block = copy.deepcopy(tiny_backbone.visual.transformer.resblocks[0])
    zeroed = copy.deepcopy(block)
    zeroed.mlp.c_fc.bias.data.zero_()
    block.mlp.c_fc.bias = None
    tokens = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(block(tokens), zeroed(tokens), **FLOAT32)


def test_a_layer_that_is_not_linear_has_no_weight() -> None:
    rounding = nn.Sequential(nn.Linear(5, 3), nn.Tanh())
    with pytest.raises(RecipeError, match="A Sequential inside the image encoder cannot be folded"):
        weight_and_bias(rounding, 5)
