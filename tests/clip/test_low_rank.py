"""Low-rank changes of linear layers: their sum, their merging, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone
from kdedge.clip.layers import layers_above, with_layers
from kdedge.clip.low_rank import LowRankLinear, make_low_rank_changes


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_layer(rank: int = 3, alpha: float = 1.5) -> tuple[nn.Linear, LowRankLinear]:
    linear = nn.Linear(10, 6).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    return linear, LowRankLinear(linear, rank=rank, alpha=alpha, generator=generator)


def moved(layer: LowRankLinear) -> LowRankLinear:
    with torch.no_grad():
        layer.b.copy_(drawn(*layer.b.shape, seed=2))
    return layer


def test_a_layer_starts_as_the_frozen_one_and_holds_a_and_b_alone() -> None:
    linear, layer = make_layer()
    assert {name: tuple(x.shape) for name, x in layer.state_dict().items()} == {
        "a": (3, 10),
        "b": (6, 3),
    }
    assert torch.equal(layer(drawn(4, 10)), linear(drawn(4, 10)))
    assert float(layer.a.detach().std()) == pytest.approx(10**-0.5, rel=0.35)


def test_the_merged_weight_is_the_sum_in_float64_rounded_once() -> None:
    linear, layer = make_layer()
    moved(layer)
    a, b, weight = layer.a.detach(), layer.b.detach(), linear.weight.detach()
    slow = torch.zeros(6, 10, dtype=torch.float64)
    for i in range(6):
        for j in range(10):
            change = sum(float(b[i, r]) * float(a[r, j]) for r in range(3))
            slow[i, j] = float(weight[i, j]) + 1.5 / 3 * change
    assert layer.merged_weight().dtype == torch.float32
    torch.testing.assert_close(layer.merged_weight().double(), slow, atol=1e-7, rtol=1e-7)
    plain = layer.as_linear()
    assert type(plain) is nn.Linear
    assert torch.equal(plain.weight, layer.merged_weight())
    assert not plain.weight.requires_grad


def test_evaluation_merges_and_training_forgets_what_was_merged() -> None:
    _, layer = make_layer()
    moved(layer)
    tokens = drawn(5, 10)
    unmerged = layer(tokens)
    merged = layer.eval()(tokens)
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged, layer.as_linear()(tokens))
    with torch.no_grad():
        layer.train().b.zero_()
    assert not torch.equal(layer.eval()(tokens), merged)


def test_gradients_reach_a_and_b_and_not_the_frozen_layer() -> None:
    linear, layer = make_layer()
    moved(layer)(drawn(4, 10)).square().sum().backward()
    assert layer.a.grad is not None
    assert layer.b.grad is not None
    assert linear.weight.grad is None


def changes(backbone: Backbone, **chosen: Any) -> Any:
    given = {"rank": 2, "alpha": 1.0, "projections": ["q", "mlp"], "blocks": [0, 2], **chosen}
    generator = torch.Generator().manual_seed(1)
    return make_low_rank_changes(backbone.visual, generator=generator, **given)


def test_changes_are_made_to_the_chosen_layers_of_the_chosen_blocks(
    tiny_backbone: Backbone,
) -> None:
    names = set(changes(tiny_backbone).layers())
    assert names == {
        f"transformer.resblocks.{block}.{layer}"
        for block in (0, 2)
        for layer in ("attn.q", "mlp.c_fc", "mlp.c_proj")
    }
    everywhere = changes(tiny_backbone, projections=["v", "out", "k"], blocks=None).layers()
    assert len(everywhere) == 3 * 3


def test_an_encoder_with_other_layers_shares_all_other_tensors(tiny_backbone: Backbone) -> None:
    visual = tiny_backbone.visual
    layers = changes(tiny_backbone).layers()
    encoder = with_layers(visual, layers)
    own = {id(tensor) for tensor in visual.parameters()}
    new = [p for p in encoder.parameters() if id(p) not in own]
    assert {id(p) for p in new} == {id(p) for layer in layers.values() for p in (layer.a, layer.b)}
    images = drawn(2, 3, 32, 32)
    torch.testing.assert_close(encoder(images), visual(images), atol=1e-5, rtol=1e-5)
    assert type(visual.transformer.resblocks[0].attn.q) is nn.Linear


def test_the_layers_of_a_vit_are_its_blocks(tiny_backbone: Backbone) -> None:
    above = layers_above(tiny_backbone.visual)
    assert set(above) == {name for name, _ in tiny_backbone.visual.named_parameters()}
    expected = {"conv1.weight": 4, "class_embedding": 4, "positional_embedding": 4, "proj": 0}
    expected |= {"ln_pre.weight": 4, "ln_post.bias": 0}
    expected |= {f"transformer.resblocks.{i}.attn.q.weight": 3 - i for i in range(3)}
    assert {name: above[name] for name in expected} == expected


def test_the_layers_of_another_network_are_its_blocks_in_order() -> None:
    network = nn.Sequential()
    network.add_module("conv", nn.Conv2d(3, 4, 1))
    network.add_module("layer1", nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))))
    network.add_module("layer2", nn.Sequential(nn.Linear(4, 4)))
    network.add_module("norm", nn.LayerNorm(4))
    above = {name: n for name, n in layers_above(network).items() if name.endswith("weight")}
    assert above == {
        "conv.weight": 4,
        "layer1.0.weight": 3,
        "layer1.1.0.weight": 2,
        "layer2.0.weight": 1,
        "norm.weight": 0,
    }
