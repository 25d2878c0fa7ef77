"""State dicts in open_clip's names, and the split of an optimizer's state."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from open_clip import CLIP
from torch import Tensor, nn

from kdedge.clip.backbone import Backbone, hash_weights, make_backbone
from kdedge.clip.open_clip_names import split_all, split_attention, split_optimizer_state

BLOCK = "visual.transformer.resblocks.0.attn."
KINDS = ("weight", "bias")


def test_a_backbones_state_dict_is_open_clips_to_the_bit(
    tiny_backbone: Backbone, tiny_open_clip: CLIP
) -> None:
    ours, theirs = tiny_backbone.model.state_dict(), tiny_open_clip.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert tiny_backbone.weights_hash == hash_weights(theirs)


def test_open_clip_reads_what_a_backbone_gives(
    tiny_backbone: Backbone, tiny_open_clip: CLIP
) -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        tiny_backbone.image_features(images),
        tiny_open_clip.encode_image(images, normalize=True),
        atol=1e-5,
        rtol=1e-4,
    )


def test_replacing_blocks_changes_no_hash(tiny_backbone: Backbone, tiny_open_clip: CLIP) -> None:
    model = copy.deepcopy(tiny_open_clip)
    again = make_backbone(model, name="any", preprocess=tiny_backbone.preprocess)
    assert again.weights_hash == tiny_backbone.weights_hash
    assert again.identity == tiny_backbone.identity


def test_a_state_dict_loads_strictly_and_to_the_bit(tiny_backbone: Backbone) -> None:
    visual = copy.deepcopy(tiny_backbone.visual)
    state = visual.state_dict()
    other = copy.deepcopy(visual)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    other.load_state_dict(state)
    assert all(
        torch.equal(now, before)
        for now, before in zip(other.parameters(), visual.parameters(), strict=True)
    )
    missing = {key: value for key, value in state.items() if "out_proj.bias" not in key}
    with pytest.raises(RuntimeError, match=r"Missing key.*resblocks\.0\.attn\.out\.bias"):
        other.load_state_dict(missing)


def test_a_block_alone_has_the_same_names(tiny_backbone: Backbone) -> None:
    attention = copy.deepcopy(tiny_backbone.visual.transformer.resblocks[0].attn)
    state = attention.state_dict()
    assert list(state) == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    attention.q.weight.data.zero_()
    attention.load_state_dict(state)
    assert torch.equal(attention.q.weight, state["in_proj_weight"][:64])


def test_an_attention_with_a_wrapped_layer_keeps_the_names_of_its_layers(
    tiny_backbone: Backbone,
) -> None:
    visual = copy.deepcopy(tiny_backbone.visual)
    first = visual.transformer.resblocks[0].attn
    first.q = nn.Sequential(first.q)
    state = visual.state_dict()
    wrapped = {key for key in state if key.startswith(BLOCK.removeprefix("visual."))}
    parts = ("q.0", "k", "v", "out")
    assert wrapped == {
        f"transformer.resblocks.0.attn.{part}.{kind}"
        for part in parts
        for kind in ("weight", "bias")
    }
    assert "transformer.resblocks.1.attn.in_proj_weight" in state
    visual.load_state_dict(state)


def test_averages_are_split_by_name() -> None:
    fused = torch.arange(12.0).reshape(6, 2)
    values = {"prompts": fused, f"{BLOCK}in_proj_weight": fused, f"{BLOCK}out_proj.bias": fused[0]}
    split = split_all(values)
    assert split.keys() == {"prompts", *(f"{BLOCK}{x}.weight" for x in "qkv"), f"{BLOCK}out.bias"}
    assert torch.equal(split[f"{BLOCK}k.weight"], fused[2:4])


# The optimizer's state


def make_optimizer(kind: str, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [one for one in parameters if one.ndim > 0]},
        {"params": [one for one in parameters if one.ndim == 0], "weight_decay": 0.0},
    ]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01)
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.01)


def take_steps(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], seeds: range
) -> None:
    """Steps with drawn gradients, the same values for fused and for split parameters."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        fused = {
            "norm": torch.randn(4, generator=generator),
            "attn.in_proj_weight": torch.randn(12, 4, generator=generator),
            "attn.in_proj_bias": torch.randn(12, generator=generator),
            "attn.out_proj.weight": torch.randn(4, 4, generator=generator),
            "attn.out_proj.bias": torch.randn(4, generator=generator),
            "scale": torch.randn((), generator=generator),
        }
        gradients = dict(fused)
        if "attn.q.weight" in parameters:
            split_attention(gradients, "attn.")
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_split_optimizer_goes_on_to_the_bit(kind: str) -> None:
    shapes = {
        "norm": (4,),
        "attn.in_proj_weight": (12, 4),
        "attn.in_proj_bias": (12,),
        "attn.out_proj.weight": (4, 4),
        "attn.out_proj.bias": (4,),
        "scale": (),
    }
    fused = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    before = make_optimizer(kind, list(fused.values()))
    take_steps(before, fused, range(3))

    values: dict[str, Tensor] = {name: p.detach().clone() for name, p in fused.items()}
    split_attention(values, "attn.")
    order = ["norm", *(f"attn.{x}.{kind}" for x in ("q", "k", "v", "out") for kind in KINDS)]
    split = {name: nn.Parameter(values[name].clone()) for name in [*order, "scale"]}
    after = make_optimizer(kind, list(split.values()))
    state = copy.deepcopy(before.state_dict())
    after.load_state_dict(split_optimizer_state(state, after, split))
    take_steps(before, fused, range(3, 6))
    take_steps(after, split, range(3, 6))

    expected = {name: p.detach() for name, p in fused.items()}
    split_attention(expected, "attn.")
    assert all(torch.equal(split[name], expected[name]) for name in split)


def test_a_state_with_as_many_parameters_as_now_stays_as_it_is() -> None:
    parameters = {name: nn.Parameter(torch.ones(4)) for name in ("attn.q.bias", "prompts")}
    optimizer = make_optimizer("sgd", list(parameters.values()))
    for parameter in parameters.values():
        parameter.grad = torch.ones(4)
    optimizer.step()
    state = optimizer.state_dict()
    same = split_optimizer_state(state, optimizer, parameters)
    assert same["param_groups"] == state["param_groups"]
    torch.testing.assert_close(same["state"], state["state"], rtol=0, atol=0)
